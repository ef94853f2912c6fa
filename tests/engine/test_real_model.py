"""The real model in the engine: every stage cuts it, with and without recomputed activations, and trains it alike."""

import pytest

from tests.zygote import shared

FROZEN = ["objective.teacher.model=vit_tiny_patch16_224", "objective.teacher.weights=random"]
AVERAGE = ["objective.teacher.model=ema"]


@pytest.mark.parametrize(
    ("name", "lr", "stages", "overrides"),
    [
        ("tiny_cpu", 1e-3, (0, 1, 2, 3), []),
        ("simmim_cifar", 1e-4, (1, 3), []),
        ("illama_cifar_mae", 1e-3, (1, 3), []),
        pytest.param("maskalign_cifar", 1e-4, (1, 3), FROZEN, marks=pytest.mark.slow),
        pytest.param("illama_cifar_queries", 1e-4, (1, 3), [], marks=pytest.mark.slow),
        pytest.param("illama_cifar_next", 1e-4, (1, 3), [], marks=pytest.mark.slow),
    ],
)
def test_an_objective_trains_alike_at_every_stage(tmp_path, name, lr, stages, overrides):
    plain = [[stage, precision, False] for precision in ("fp32", "bf16") for stage in stages]
    kwargs = {"run_dir": str(tmp_path), "name": name, "lr": lr, "overrides": overrides}
    kwargs["combos"] = [*plain, [1, "bf16", True], [3, "fp32", True]]
    for outcome in shared().run("tests/engine/real_cases.py:losses", 2, kwargs):
        num = len(stages)
        fp32, bf16, checkpointed = outcome.value[:num], outcome.value[num : 2 * num], outcome.value[2 * num :]
        assert all(losses == pytest.approx(fp32[0], rel=1e-5) for losses in fp32)
        assert all(losses == pytest.approx(fp32[0], rel=3e-3) for losses in bf16)
        assert checkpointed[0] == bf16[stages.index(1)]
        assert checkpointed[1] == fp32[stages.index(3)]
        assert fp32[0][1] < fp32[0][0]


@pytest.mark.slow
def test_the_students_average_teaches_alike_at_every_stage_that_has_it_whole(tmp_path):
    combos = [[stage, precision, False] for precision in ("fp32", "bf16") for stage in (0, 1, 2)]
    kwargs = {"run_dir": str(tmp_path), "name": "maskalign_cifar", "lr": 1e-4, "combos": combos, "overrides": AVERAGE}
    for outcome in shared().run("tests/engine/real_cases.py:losses", 2, kwargs):
        fp32, bf16 = outcome.value[:3], outcome.value[3:]
        assert all(losses == pytest.approx(fp32[0], rel=1e-5) for losses in fp32)
        assert all(losses == pytest.approx(fp32[0], rel=3e-3) for losses in bf16)


def test_a_decoder_that_cuts_its_projections_trains_alike_where_they_are_cut_over_ranks(tmp_path):
    combos = [[0, "fp32", False], [3, "fp32", False], [3, "fp32", True], [3, "bf16", False]]
    kwargs = {"run_dir": str(tmp_path), "name": "tiny_cpu", "lr": 1e-3, "combos": combos}
    kwargs["overrides"] = ["objective.decoder_weights=0,0.5"]
    for outcome in shared().run("tests/engine/real_cases.py:losses", 2, kwargs):
        whole, cut, checkpointed, bf16 = outcome.value
        assert cut == pytest.approx(whole, rel=1e-5) and cut == checkpointed
        assert bf16 == pytest.approx(whole, rel=3e-3)
        assert whole[1] < whole[0]
