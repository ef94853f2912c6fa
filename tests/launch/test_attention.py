"""`lacuna evaluate --attention` on a run directory in the real format."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from launch.attention import _under_the_same_mask
from launch.cli import main
from pretrain.backbones.illama import IllamaConfig
from pretrain.engine.load import load_backbone, untrained_backbone
from tests import chaos
from tests.engine.load_cases import CONFIG, save

ILLAMA = IllamaConfig("tiny", patch_size=16, width=32, depth=2, heads=2)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("backbone", [CONFIG.backbone, ILLAMA], ids=["vit", "illama"])
def test_it_prints_a_table_and_leaves_a_picture(
    tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str], backbone: object
) -> None:
    run = tmp_path / "first"
    data = replace(CONFIG.data, train=pattern, workers=0)
    save(run, 7, config=replace(CONFIG, backbone=backbone, data=data))
    assert main(["evaluate", str(run), "--attention", "--untrained", "--max-images", "5"]) == 0
    printed = capsys.readouterr().out
    assert "baselines: identity 6, uniform lower triangle 4, uniform 1" in printed and "5 images, 7 tokens" in printed
    facts = json.loads((run / "attention-rank.json").read_text())
    assert (facts["step"], facts["data"]) == (7, pattern)
    assert list(facts["results"]) == ["step 7 (model)", "untrained"]
    assert [len(block["rank"]) for block in facts["results"]["untrained"]["blocks"]] == [2, 2]
    with Image.open(run / "attention-rank.png") as picture:
        assert picture.format == "PNG"


def test_the_untrained_encoder_is_put_under_the_trained_ones_mask(tmp_path: Path) -> None:
    config = replace(CONFIG, backbone=ILLAMA)
    save(tmp_path / "first", 7, config=config)
    trained, untrained = load_backbone(tmp_path / "first").backbone, untrained_backbone(config)
    trained.get_buffer("alpha").fill_(0.25)
    assert untrained.get_buffer("alpha") == 1
    assert _under_the_same_mask(untrained, trained).get_buffer("alpha") == 0.25


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pool", "cls"], "--pool has no effect with --attention"),
        (["--methods", "knn", "--layer", "1"], "--methods, --layer has no effect with --attention"),
        (["--train-data", "x"], "--train-data has no effect"),
        (["--max-images", "0"], "--max-images=0; give 1 image or more"),
    ],
)
def test_what_cannot_take_effect_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["evaluate", "nowhere", "--attention", *arguments]) == 78
    assert says in capsys.readouterr().err
