"""Every ZeRO stage, in both number formats, is the same training: the plain loop's, cut over two ranks."""

import math
from itertools import product

import pytest

from tests.engine.campaigns import poison_campaign
from tests.zygote import shared

CASES = "tests/engine/cases.py"
STAGES, PRECISIONS = (0, 1, 2, 3), ("fp32", "bf16")


@pytest.fixture(scope="module")
def reference():
    """The plain loop, in a forked process so that this one never imports DeepSpeed."""
    return shared().run(f"{CASES}:plain_reference", kwargs={"steps": 5, "clip_norm": 0.9, "ema_decay": 0.9})[0].value


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_norms_weights_and_average_equal_a_plain_loop_at_every_stage(reference, accumulation, tmp_path):
    settings = {"accumulation": accumulation, "clip_norm": 0.9, "ema_decay": 0.9}
    combos = [[stage, precision, settings] for stage, precision in product(STAGES, PRECISIONS)]
    kwargs = {"run_dir": str(tmp_path), "combos": combos, "steps": 5}
    found = [outcome.value for outcome in shared().run(f"{CASES}:losses", 2, kwargs)]
    assert found[0] == found[1], "the ranks disagree"
    for (stage, precision), have in zip(product(STAGES, PRECISIONS), found[0].values(), strict=True):
        tolerance = 2e-6 if precision == "fp32" else 4e-3
        for key in ("losses", "norms"):
            assert have[key] == pytest.approx(reference[key], rel=tolerance), (stage, precision, key)
        for key in ("weights", "ema"):
            assert have[key].keys() == reference[key].keys()
            worst = max(_distance(have[key][name], want) for name, want in reference[key].items())
            assert worst < (2e-5 if precision == "fp32" else 3e-2), (stage, precision, key, worst)


def test_every_stage_gives_the_same_bf16_losses(tmp_path):
    combos = [[stage, "bf16", {}] for stage in STAGES]
    found = shared().run(f"{CASES}:losses", 2, {"run_dir": str(tmp_path), "combos": combos})[0].value
    first, *others = (entry["losses"] for entry in found.values())
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def test_a_loss_or_gradient_that_is_not_finite_on_one_rank_leaves_no_trace():
    found = poison_campaign(16)
    assert found["failures"] == []
    assert found["stored_values"] > 0


@pytest.mark.slow
def test_it_leaves_none_at_any_step_rank_stage_and_precision():
    assert poison_campaign(1000)["failures"] == []


def _distance(have: list[float], want: list[float]) -> float:
    return max((abs(a - b) if math.isfinite(a) else math.inf for a, b in zip(have, want, strict=True)), default=0.0)
