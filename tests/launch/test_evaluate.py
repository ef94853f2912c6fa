"""`lacuna evaluate` on real JPEGs: table, JSON and picture, of one run and of several sources."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.cli import main
from launch.evaluation_results import short_name, table
from pretrain.tracking.evaluation_picture import evaluation_picture, fitting
from pretrain.tracking.pen import length
from tests import chaos
from tests.engine.load_cases import CONFIG, save
from tests.init.cases import SQUARE, as_mae, drawn, saved


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def made_run(run: Path, pattern: str) -> str:
    save(run, 7, config=replace(CONFIG, data=replace(CONFIG.data, train=pattern, val=pattern, workers=0)))
    return str(run)


def test_two_sources_and_their_baselines_share_a_table_a_json_and_a_picture(
    tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = made_run(tmp_path / "first", pattern), saved(as_mae(drawn(SQUARE)), tmp_path / "mae.pth")
    out = tmp_path / "out"
    given = ["--data", pattern, "--train-data", pattern, "--methods", "knn", "--max-images", "20", "--out", str(out)]
    assert main(["evaluate", run, file, "--untrained", *given]) == 0
    printed, shown = capsys.readouterr()
    names = [f"{run}, step 7 (model)", f"{run}, untrained", file, f"{file}, untrained"]
    assert [line.split("  ")[0] for line in printed.splitlines()[1:5]] == [short_name(name) for name in names]
    assert "images/s" in shown and "nothing says how many heads" in printed
    facts = json.loads((out / "evaluation.json").read_text())
    assert list(facts["results"]) == names and list(facts["sources"]) == [run, file]
    assert facts["sources"][file]["image_size"] == [64, 64] and facts["sources"][run]["settings"]["methods"] == ["knn"]
    assert facts["versions"]["torch"] and facts["machine"]["device"] and facts["date"] and facts["sources"][run]["data"]
    with Image.open(out / "evaluation.png") as picture:
        assert picture.format == "PNG" and np.asarray(picture)[..., 3].any()
    assert not list(Path(run).glob("evaluate-step-*"))


def test_a_run_alone_keeps_its_figures_and_their_picture_beside_its_checkpoints(tmp_path: Path, pattern: str) -> None:
    run = made_run(tmp_path / "first", pattern)
    assert main(["evaluate", run, "--methods", "knn", "--max-images", "20"]) == 0
    facts = json.loads((tmp_path / "first" / "evaluate-step-0000007.json").read_text())
    assert (facts["step"], facts["weights"], list(facts["results"])) == (7, "model", ["step 7 (model)"])
    assert (tmp_path / "first" / "evaluate-step-0000007.png").is_file()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["RUN", "RUN"], "is given twice"),
        (["FILE"], "give --train-data and --data"),
        (["FILE", "--data", "x"], "give --train-data (a pattern"),
        (["FILE", "--data", "x", "--train-data", "x", "--methods", "head"], "is no run"),
        (["RUN", "--methods", "knn,tea"], "choose of knn, linear, linear-sgd, lowshot, attentive, head"),
        (["RUN", "--max-images", "1"], "give 2 images or more"),
        (["RUN", "--all-images", "--max-images", "9"], "exclude each other"),
        (["RUN", "--layer", "2"], "blocks are 0 to 1"),
        (["RUN", "FILE", "--attention"], "looks at one run, and 2 are given"),
        (["RUN", "--attention", "--out", "x"], "--out has no effect with --attention"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    places = {"RUN": lambda: str(tmp_path / "first"), "FILE": lambda: saved(as_mae(drawn(SQUARE)), tmp_path / "m.pth")}
    made_run(tmp_path / "first", pattern)
    assert main(["evaluate", *(places[text]() if text in places else text for text in more)]) == 78
    assert says in capsys.readouterr().err


def test_long_names_keep_both_ends_and_warnings_say_whom_they_are_about(tmp_path: Path) -> None:
    long = "/".join(["folder"] * 20) + "/last, step 7 (ema)"
    row = {"knn": 0.5, "chance": 0.2, "val_images": 9, "train_images": 9}
    results = {long: {**row, "warnings": ["odd"]}, "b, untrained": {**row, "lowshot_1%": 0.3, "warnings": []}}
    lines = table(results).splitlines()
    assert lines[1].startswith("folder/") and "... " not in lines[1] and "last, step 7 (ema)  " in lines[1]
    assert lines[1].split()[-1] == "-" and lines[-1].endswith("(ema): odd") and "chance 0.2000" in lines[3]
    assert length(fitting(long, 300)) <= 300 and fitting("b", 300) == "b"
    with Image.open(evaluation_picture(results, tmp_path / "x.png")) as picture:
        assert picture.size[0] == 1520
