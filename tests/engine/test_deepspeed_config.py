"""The JSON that DeepSpeed gets."""

import json
from itertools import product

import pytest

from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.settings import EngineConfig
from pretrain.errors import ConfigError
from tests.zygote import shared


def test_batch_is_micro_batch_times_accumulation_times_world():
    config = deepspeed_config(EngineConfig(accumulation=4), "bf16", 256, 8)
    assert config["train_batch_size"] == 256 == config["train_micro_batch_size_per_gpu"] * 4 * 8
    with pytest.raises(ConfigError, match="multiple of 12"):
        deepspeed_config(EngineConfig(accumulation=4), "bf16", 256, 3)


def test_micro_batches_are_added_up_in_fp32_and_deepspeed_neither_clips_nor_times():
    for stage, precision, accumulation in product((0, 1, 2, 3), ("bf16", "fp32"), (1, 2)):
        cfg = EngineConfig(zero_stage=stage, accumulation=accumulation)  # type: ignore[arg-type]
        config = deepspeed_config(cfg, precision, 16, 2)
        by_deepspeed = config.get("data_types", {}).get("grad_accum_dtype") == "fp32"
        assert by_deepspeed == (precision == "bf16" and accumulation > 1 and stage > 0)
        assert config["gradient_clipping"] == 0
        assert config["timers"]["throughput"]["enabled"] is False


def test_the_run_directory_holds_exactly_what_deepspeed_was_given(tmp_path):
    kwargs = {"run_dir": str(tmp_path), "combos": [[2, "bf16", {"accumulation": 2}]]}
    shared().run("tests/engine/cases.py:layouts", 2, kwargs)[0].value  # noqa: B018  # asserts that it ended well
    cfg = EngineConfig(zero_stage=2, accumulation=2)
    assert json.loads((tmp_path / "deepspeed.json").read_text()) == deepspeed_config(cfg, "bf16", 12, 2)
