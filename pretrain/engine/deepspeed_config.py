"""DeepSpeed's JSON, derived from our config and from nothing else, with only keys that DeepSpeed knows.

DeepSpeed takes a misspelt key at the top level without a word, so every key that may be written is listed here. What we
do ourselves, at every stage alike, is switched off in it: clipping, and the check for values that are not finite.
"""

from __future__ import annotations

from typing import Any

from pretrain.engine.precision import Precision
from pretrain.engine.settings import EngineConfig
from pretrain.errors import ConfigError

PERSIST_BELOW = 100_000  # stage 3 leaves smaller tensors whole on every rank, values
_TOP = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "steps_per_print", "wall_clock_breakdown", "timers", "zero_allow_untested_optimizer", "zero_optimization", "bf16",
    "data_types",
}


def deepspeed_config(cfg: EngineConfig, precision: Precision, batch_size: int, world: int) -> dict[str, Any]:
    """The dict handed to deepspeed.initialize; batch_size is the global one."""
    parts = world * cfg.accumulation
    if batch_size % parts:
        raise ConfigError(
            f"data.batch_size={batch_size} cannot be split over {world} processes x engine.accumulation="
            f"{cfg.accumulation}; choose a multiple of {parts}"
        )
    config: dict[str, Any] = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // parts,
        "gradient_accumulation_steps": cfg.accumulation,
        "gradient_clipping": 0.0,  # engine.py clips, in the optimizer's kernel
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device in every step
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero(cfg, precision),
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": False}
        config["data_types"] = {"buffer_dtype": "bf16"}  # as module.bfloat16() does; positions are added to tokens
        if accumulates_in_deepspeed(cfg):
            config["data_types"]["grad_accum_dtype"] = "fp32"
    assert set(config) <= _TOP
    return config


def accumulates_in_deepspeed(cfg: EngineConfig) -> bool:
    """Whether DeepSpeed itself adds up bf16 micro-batches in fp32; at stage 0 it cannot, and engine.py does."""
    return cfg.accumulation > 1 and cfg.zero_stage > 0


def _zero(cfg: EngineConfig, precision: Precision) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": cfg.zero_stage}
    if cfg.zero_stage == 0:
        return zero
    zero |= {"reduce_bucket_size": 2**26, "allgather_bucket_size": 2**28, "overlap_comm": False}
    through_bf16_optimizer = cfg.zero_stage == 1 and precision == "bf16" and cfg.accumulation > 1
    if cfg.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSIST_BELOW
        zero["memory_efficient_linear"] = False  # it replaces torch's linear in the whole process, with other rounding
    if cfg.zero_stage in (1, 2) and not through_bf16_optimizer:
        zero["compute_grad_norm"] = False  # DeepSpeed's norm waits for the device; ours does not
    return zero
