"""From shards to a grid of samples: a tokenizer, then MaskGIT, MAGE and MAR on its tokens, as real processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch.cli import main
from pretrain.tokenizers.frozen import TokenizerConfig, frozen_tokenizer
from pretrain.tracking.report import write_report
from tests import chaos
from tests.zygote import Outcome, shared

CASE = "tests/test_mto_runs.py:rank"
STEPS = 8
SMALL = {
    "maskgit": ("backbone.classes=5",),
    # at the config's rate, so few steps at so small a batch move no token of its last picture on some processors
    "mage": ("objective.decoder_depth=1", "objective.decoder_heads=4", "optim.base_lr=2e-3"),
    "mar": ("backbone.classes=5", "backbone.num_prefix=4", "objective.decoder_depth=1", "objective.head.width=32",
            "objective.head.depth=1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, pattern: str) -> Path:
    """A run that has trained a tokenizer, on two processes."""
    run_dir = tmp_path_factory.mktemp("tokenizers") / "fsq"
    train(run_dir, "tokenizer_fsq_cifar", pattern, "backbone.width=8", "tracking.panels_every=4", world=2)
    return run_dir


def train(run_dir: Path, config: str, pattern: str, *more: str, world: int = 1) -> list[Outcome]:
    outcomes = shared().run(CASE, world, {"config": config, "overrides": settings(run_dir, pattern, *more)})
    assert [outcome.code for outcome in outcomes] == [0] * world, outcomes[0].output[-3000:]
    return outcomes


def settings(run_dir: Path, pattern: str, *more: str) -> list[str]:
    drop = ("backbone.", "objective.")
    kept = [text for text in chaos.overrides(run_dir, pattern, STEPS, stage=1, workers=0) if not text.startswith(drop)]
    return [*kept, "epochs=none", "checkpoint.every_steps=1000", "tracking.log_every=2", *more]


def stop_early(run_dir: Path, config: str, pattern: str, *more: str) -> None:
    """Trains on two processes until a signal asks them to stop, before the last step."""
    attempt = shared().start(CASE, 2, {"config": config, "overrides": settings(run_dir, pattern, *more)})
    while not (run_dir / "metrics.jsonl").exists() or len(lines(run_dir)) < 2:
        time.sleep(0.02)
    os.kill(attempt.pids[0], signal.SIGUSR2)
    assert [outcome.code for outcome in attempt.wait()] == [75, 75]
    assert 2 <= chaos.last_step(run_dir) < STEPS


def model_settings(family: str, tokenizer: Path) -> list[str]:
    path = [] if family == "mar" else [f"backbone.tokenizer.path={tokenizer}"]
    narrow = ("backbone.width=48", "backbone.depth=2", "backbone.heads=4")
    return [*path, *narrow, *SMALL[family]]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pattern: str, tokenizer: Path) -> dict[str, Path]:
    """A run of each family, on two processes under ZeRO-3."""
    folder = tmp_path_factory.mktemp("runs")
    for family in SMALL:
        more = ("backbone.dropout=0", "engine.zero_stage=3", "tracking.samples_every=6", "tracking.panels_every=8")
        train(folder / family, f"{family}_cifar", pattern, *model_settings(family, tokenizer), *more, world=2)
    return {family: folder / family for family in SMALL}


def test_the_tokenizer_logs_what_it_is_judged_by_and_draws_what_it_makes_of_images(tokenizer: Path) -> None:
    assert all(5 < line["psnr"] < 40 for line in lines(tokenizer))
    inspected = json.loads((tokenizer / "inspections.jsonl").read_text().splitlines()[-1])["tokens"]
    assert 1 < inspected["codes_used"] <= inspected["codes"] <= 1000
    assert list((tokenizer / "panels").glob("*0000004.png"))
    html = write_report(tokenizer).read_text()
    assert "made of their tokens" in html and html.count("<th>step <b>") == 3 and "ConvTokenizer/4 on 32x32" in html
    config = TokenizerConfig(str(tokenizer))
    ids = frozen_tokenizer(config).tokens(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert ids.shape == (2, 64) and 0 <= int(ids.min()) and int(ids.max()) < 1000


@pytest.mark.parametrize("family", SMALL)
def test_two_processes_train_as_one_does(
    tmp_path: Path, pattern: str, tokenizer: Path, runs: dict[str, Path], family: str
) -> None:
    more = (*model_settings(family, tokenizer), "backbone.dropout=0", "engine.activation_checkpointing=true")
    train(tmp_path / "one", f"{family}_cifar", pattern, *more)
    alone, together = lines(tmp_path / "one"), lines(runs[family])
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=3e-4)
    assert [line["digest"] for line in together] == [line["digest"] for line in alone]


@pytest.mark.parametrize("family", ["mage", pytest.param("mar", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, pattern: str, tokenizer: Path, family: str) -> None:
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    more = model_settings(family, tokenizer)
    train(calm, f"{family}_cifar", pattern, *more, world=2)
    stop_early(asked, f"{family}_cifar", pattern, *more)
    train(asked, f"{family}_cifar", pattern, *more, world=2)
    chaos.compare(calm, asked)


@pytest.mark.parametrize("family", SMALL)
def test_samples_are_drawn_as_training_goes_on_and_the_report_shows_them(runs: dict[str, Path], family: str) -> None:
    drawn = sorted((runs[family] / "panels").glob("samples-*.png"))
    assert [path.stem for path in drawn] == ["samples-0000000", "samples-0000006", f"samples-{STEPS:07}"]
    assert len({path.read_bytes() for path in drawn}) == 3
    html = write_report(runs[family]).read_text()
    assert html.count("images generated at step") == 3 and "<h2>Samples</h2>" in html


def test_a_joint_sampler_is_trained_on_a_run_of_maskgit_and_takes_its_local_steps(
    tmp_path: Path, pattern: str, tokenizer: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own = (f"backbone.tokenizer.path={tokenizer}", "backbone.classes=5", "backbone.width=32", "backbone.heads=4")
    base = f"objective.base={runs['maskgit']}"
    for world in (1, 2):
        train(tmp_path / str(world), "joint_maskgit_cifar", pattern, *own, base, f"engine.zero_stage={1 + world}",
              world=world)  # fmt: skip
    alone, together = lines(tmp_path / "1"), lines(tmp_path / "2")
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-3)
    assert alone[0]["loss"] == pytest.approx(alone[0]["marginal"]) and all(line["marginal"] > 0 for line in alone)
    asked = ["generate", str(runs["maskgit"]), "--num", "4", "--steps", "6", "-o", str(tmp_path / "made")]
    assert main([*asked, "--recap", "1", "--joint", str(tmp_path / "1")]) == 0
    assert "3 full and 3 local passes, 4.50 in full ones" in capsys.readouterr().out
    for more, words in (
        (["--joint", str(tmp_path / "1")], "a joint sampler is for local steps, and there are none"),
        (["--recap", "1", "--joint", str(runs["mage"])], "trained MAGE; --joint wants a run of"),
        (["--recap", "1", "--joint", str(tmp_path / "1"), "--weights", "model"], "for another model, or other weights"),
    ):
        assert main([*asked, *more]) == 78
        assert words in capsys.readouterr().err
    for setting, words in (
        (f"objective.base={runs['mage']}", "trained MAGEConfig; name a run that trained MaskGIT"),
        (f"objective.base={tmp_path}/none", "is no run that can be read"),
        ("backbone.classes=4", "has backbone.classes=5, and this run 4: give both the same"),
    ):
        more = settings(tmp_path / "no", pattern, *own, base, setting)
        (refused,) = shared().run(CASE, 1, {"config": "joint_maskgit_cifar", "overrides": more})
        assert refused.code == 78 and words in refused.output, refused.output[-1500:]


@pytest.mark.parametrize("family", ["maskgit", "mage"])
def test_a_stopping_rule_is_learned_beside_a_run_and_images_take_the_steps_they_need(
    runs: dict[str, Path], pattern: str, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs[family])
    asked = ["generate", run, "--num", "6", "--steps", "8", "-o", str(runs[family] / "stopped"), "--stop"]
    assert main([*asked, "0.5"]) == 78
    assert "learn it first: lacuna generate" in capsys.readouterr().err
    assert main(["generate", run, "--learn-stopping", pattern, "--delta", "0.02", "--batch-size", "32"]) == 0
    assert "of hidden positions" in capsys.readouterr().out
    taken = {}
    for least in ("1", "0.000001"):
        assert main([*asked, least]) == 0
        facts = json.loads((runs[family] / "stopped" / "samples.json").read_text())
        taken[least] = facts["full_passes"]
        assert f"{facts['fewest_passes']} to {facts['most_passes']} passes an image" in capsys.readouterr().out
    assert taken == {"1": 8.0, "0.000001": 1.0}
    assert main([*asked, "0.5", "--recap", "1"]) == 78
    assert "use --stop without --recap" in capsys.readouterr().err


def test_what_generates_nothing_is_not_asked_for_samples(tmp_path: Path, pattern: str) -> None:
    more = settings(tmp_path / "run", pattern, "tracking.samples_every=5")
    for config, name in (("mae_cifar", "PixelMAEConfig"), ("joint_maskgit_cifar", "JointSamplerConfig")):
        own = [] if name == "PixelMAEConfig" else ["backbone.tokenizer.path=palette", "backbone.tokenizer.patch_size=4"]
        (refused,) = shared().run(CASE, 1, {"config": config, "overrides": [*more, *own]})
        assert refused.code == 78
        assert f"only MaskGIT, MAGE and MAR generate images, and objective is {name}; set it" in refused.output


@pytest.mark.parametrize("family", SMALL)
def test_generate_writes_a_grid_and_arrays_and_what_they_cost(
    runs: dict[str, Path], family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--num", "6", "--steps", "8", "--recap", "1", "--full-first", "2", "--diffusion-steps", "3"]
    folder = runs[family] / "samples"
    assert main(["generate", str(runs[family]), *asked, "--guidance", "0" if family == "mage" else "1"]) == 0
    said = capsys.readouterr().out
    assert str(folder / "grid.png") in said and "5 full and 3 local passes" in said
    found, facts = np.load(folder / "samples.npz"), json.loads((folder / "samples.json").read_text())
    assert found["images"].shape == (6, 3, 32, 32) and found["images"].dtype == np.uint8
    assert found["labels"].tolist() == ([-1] * 6 if family == "mage" else [0, 1, 2, 3, 4, 0])
    assert found["tokens"].shape == ((6, 64, 48) if family == "mar" else (6, 64))
    assert (facts["step"], facts["weights"], facts["full_passes"], facts["local_passes"]) == (STEPS, "ema", 5, 3)
    with Image.open(folder / "grid.png") as picture:
        assert picture.width > 3 * 32
    out = folder / "again"
    assert main(["generate", str(runs[family]), *asked, "--guidance", "0" if family == "mage" else "1", "--batch-size",
                 "4", "-o", str(out)]) == 0  # fmt: skip
    assert np.array_equal(np.load(out / "samples.npz")["images"], found["images"])


def test_samples_are_compared_with_real_images_in_the_features_of_a_run(
    runs: dict[str, Path], pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    space, out = runs["mage"], runs["maskgit"] / "compared"
    asked = ["--num", "20", "--steps", "4", "-o", str(out), "--compare", pattern, "--space", str(space)]
    assert main(["generate", str(runs["maskgit"]), *asked]) == 0
    found = json.loads((out / "samples.json").read_text())["score"]
    assert found["space"] == f"FID-own (run mage, step {STEPS})" and found["fid"] > 0
    assert (found["generated_images"], found["real_images"], found["bad_images"]) == (20, 175, 5)
    assert 0 <= found["accuracy"] <= 1 and found["chance"] == pytest.approx(0.2, abs=0.02)
    said = capsys.readouterr().out
    assert f"FID-own (run mage, step {STEPS})" in said and f"fid                {found['fid']:.4f}" in said


def test_features_of_mage_are_evaluated_as_any_encoder_is(runs: dict[str, Path], pattern: str) -> None:
    assert main(["evaluate", str(runs["mage"]), "--data", pattern, "--methods", "knn"]) == 0
    results = json.loads((runs["mage"] / f"evaluate-step-{STEPS:07}.json").read_text())["results"]
    assert 0 <= results[f"step {STEPS} (ema)"]["knn"] <= 1


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("tokenizer", [], "trained Reconstruction, which generates no images; give a run of MaskGIT, MAGE or MAR"),
        ("mage", ["--classes", "3"], "--classes=3: this run was told of no classes; leave it out"),
        ("maskgit", ["--classes", "1,5"], "--classes has '5'; classes are 0 to 4, separated by commas, or all"),
        ("maskgit", ["--steps", "65"], "65 steps for 64 tokens to generate; use 1 to 64"),
        ("mage", ["--guidance", "2"], "it was trained without: set backbone.classes and backbone.class_drop"),
        ("mar", ["--order", "confidence"], "order=confidence needs codes, whose probability is known"),
        ("maskgit", ["--num", "0"], "0 images in batches of 64; both must be 1 or more"),
        ("maskgit", ["--compare", "val/*.tar"], "give both, or neither"),
        ("maskgit", ["--compare", "val/*.tar", "--space", "nowhere"], "--space=nowhere is not there; give a run"),
        ("maskgit", ["--step", "3"], "has no checkpoint of step 3"),
    ],
)
def test_what_cannot_be_generated_is_said_in_a_sentence(
    runs: dict[str, Path], tokenizer: Path, family: str, asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tokenizer if family == "tokenizer" else runs[family]
    assert main(["generate", str(run_dir), *asked]) in (77, 78)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_token_model_without_its_tokenizer_is_refused_before_anything_runs(tmp_path: Path, pattern: str) -> None:
    more = settings(tmp_path / "run", pattern, f"backbone.tokenizer.path={tmp_path}/nowhere")
    (refused,) = shared().run(CASE, 1, {"config": "maskgit_cifar", "overrides": more})
    assert refused.code == 78 and "train a tokenizer first" in refused.output
    assert not (tmp_path / "run").exists()
