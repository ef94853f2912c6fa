"""What can be refused of `sparse` before anything is opened."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from pretrain.config import Config, flatten
from pretrain.engine.published import has_checkpoint
from pretrain.errors import ConfigError
from pretrain.ranges import AT_LEAST_0, POSITIVE, SHARE, Range, check_ranges

_OBJECTIVES = ("SupervisedConfig", "PixelMAEConfig", "SimMIMConfig")
_PAIR: Range = ("two numbers above 0", lambda v: min(v) > 0)
_RANGES: dict[str, Range] = {
    "sparse.mask_tuning.dropout": SHARE,
    "sparse.mask_tuning.distill": AT_LEAST_0,
    "sparse.mask_tuning.penalty": AT_LEAST_0,
    "sparse.two_four.prior": AT_LEAST_0,
    "sparse.two_four.init_std": POSITIVE,
    "sparse.two_four.scale": _PAIR,
    "sparse.two_four.temperature": _PAIR,
    "sparse.two_four.keep_norm": AT_LEAST_0,
}


def check_sparse(config: Config) -> None:
    """Raises ConfigError for a sparse run that cannot be meant, and for settings without effect."""
    sparse = config.sparse
    if sparse is None:
        return
    check_ranges(flatten(config), _RANGES)
    objective = type(config.objective).__name__
    if objective not in _OBJECTIVES:
        raise ConfigError(f"sparse has no effect on objective={objective}; it is for {', '.join(_OBJECTIVES)}")
    if config.mto is not None:
        raise ConfigError("sparse and mto both change what is trained; set mto=none or sparse=none")
    if config.init_from is None or config.init_parts == "fitting":
        raise ConfigError(
            f"init_from={config.init_from} with init_parts={config.init_parts}: sparse freezes an encoder, which must "
            "come whole from somewhere; give init_from, and init_parts=all or encoder"
        )
    _check_mask(config)
    for group in ("mask_tuning", "two_four"):
        if group != sparse.method and getattr(sparse, group) != type(getattr(sparse, group))():
            changed = next(
                f.name for f in fields(getattr(sparse, group))
                if getattr(getattr(sparse, group), f.name) != f.default
            )  # fmt: skip
            raise ConfigError(
                f"sparse.{group}.{changed} has no effect with sparse.method={sparse.method}; leave it out"
            )
    _check_mask_tuning(config)


def _check_mask(config: Config) -> None:
    assert config.sparse is not None
    mask, method = config.sparse.mask, config.sparse.method
    if method != "composable" and mask is not None:
        raise ConfigError(f"sparse.mask={mask} has no effect with sparse.method={method}; set sparse.mask=none")
    if method == "composable" and mask is None:
        raise ConfigError("sparse.method=composable needs sparse.mask, a file that `lacuna sparse select` wrote")
    if mask is not None and not Path(mask).is_file() and not has_checkpoint(config.run_dir):
        raise ConfigError(f"sparse.mask={mask} does not exist; `lacuna sparse select` writes such files")


def _check_mask_tuning(config: Config) -> None:
    assert config.sparse is not None
    tuning = config.sparse.mask_tuning
    if config.sparse.method != "mask_tuning":
        return
    if tuning.first_score <= tuning.threshold:
        raise ConfigError(
            f"sparse.mask_tuning.first_score={tuning.first_score} is not above sparse.mask_tuning.threshold="
            f"{tuning.threshold}, so every weight would begin at zero; make it larger"
        )
    if config.engine.zero_stage == 3:
        raise ConfigError(
            "sparse.method=mask_tuning reads scores whole, and engine.zero_stage=3 cuts them over processes; set "
            "engine.zero_stage=2 or below"
        )
    if tuning.dropout and config.engine.activation_checkpointing:
        raise ConfigError(
            "sparse.mask_tuning.dropout compares two gradients of one weight, which engine.activation_checkpointing "
            "would make that weight anew for each; set one of them to 0 or false"
        )
