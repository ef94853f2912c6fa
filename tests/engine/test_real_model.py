"""The real model in the engine: every stage cuts it, with and without recomputed activations, and trains it alike."""

import pytest

from tests.zygote import shared


def test_the_masked_autoencoder_trains_alike_at_every_stage(tmp_path):
    plain = [[stage, precision, False] for precision in ("fp32", "bf16") for stage in (0, 1, 2, 3)]
    kwargs = {"run_dir": str(tmp_path), "combos": [*plain, [1, "bf16", True], [3, "fp32", True]], "overrides": []}
    for outcome in shared().run("tests/engine/real_cases.py:losses", 2, kwargs):
        fp32, bf16, checkpointed = outcome.value[:4], outcome.value[4:8], outcome.value[8:]
        assert all(losses == pytest.approx(fp32[0], rel=1e-5) for losses in fp32)
        assert all(losses == pytest.approx(fp32[0], rel=3e-3) for losses in bf16)
        assert checkpointed[0] == bf16[1]
        assert checkpointed[1] == fp32[3]
        assert fp32[0][1] < fp32[0][0]


def test_a_decoder_that_cuts_its_projections_trains_alike_where_they_are_cut_over_ranks(tmp_path):
    combos = [[0, "fp32", False], [3, "fp32", False], [3, "fp32", True], [3, "bf16", False]]
    kwargs = {"run_dir": str(tmp_path), "combos": combos, "overrides": ["objective.decoder_weights=0,0.5"]}
    for outcome in shared().run("tests/engine/real_cases.py:losses", 2, kwargs):
        whole, cut, checkpointed, bf16 = outcome.value
        assert cut == pytest.approx(whole, rel=1e-5) and cut == checkpointed
        assert bf16 == pytest.approx(whole, rel=3e-3)
        assert whole[1] < whole[0]
