"""One run name, one run: what may change between two attempts, what may not, and how a run is started afresh."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from pretrain.config import Config, flatten, read_config
from pretrain.engine import fsops
from pretrain.engine.precision import resolve_precision
from pretrain.errors import ConfigError

# Settings that change how a run is carried out and leave its samples, masks and updates alone.
_FREE = (
    "runs_dir",
    "data.val",
    "data.workers",
    "data.prefetch",
    "data.timeout_s",
    "data.cache_dir",
    "data.cache_gb",
    "data.error_ratio",
    "data.error_run",
    "engine.zero_stage",
    "engine.accumulation",
    "engine.activation_checkpointing",
    "engine.compile",
    "engine.max_skipped",
    "engine.collective_timeout_s",
    "checkpoint.",
    "tracking.",
    "evaluation.",
)


def settle(config: Config, *, fresh: bool, allow_change: bool, is_main: bool) -> Config:
    """config with what is decided at a run's first start filled in; refused if it differs from the run it goes on with.

    fresh moves an earlier run directory of this name aside (rank 0 does it, before the others look).
    """
    run_dir = config.run_dir
    if fresh and is_main and run_dir.exists():
        run_dir.rename(run_dir.with_name(f"{run_dir.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
    if fresh or not (run_dir / "config.json").exists():
        if is_main:
            _make(run_dir)
        return _with_precision(config, resolve_precision(config.engine.precision))
    before = read_config(run_dir / "config.json")
    if config.engine.precision == "auto":
        config = _with_precision(config, before.engine.precision)
    changed = differences(before, config)
    if changed and not allow_change:
        key, old, new = changed[0]
        more = f" ({len(changed) - 1} more differ)" if len(changed) > 1 else ""
        raise ConfigError(
            f"{key} was {old!r} when {run_dir} began and is now {new!r}{more}; use name=... for a new run, --fresh to "
            "start this one anew, or --allow-change to go on with the new value"
        )
    return config


def differences(before: Config, now: Config) -> list[tuple[str, object, object]]:
    """Settings that bind a run and differ: (key, before, now)."""
    old, new = flatten(before), flatten(now)
    keys = [key for key in {**old, **new} if not key.startswith(_FREE)]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _with_precision(config: Config, precision: str) -> Config:
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, precision=precision))  # type: ignore[arg-type]


def _make(run_dir: Path) -> None:
    try:
        fsops.mkdir(run_dir)
    except OSError as error:
        raise ConfigError(
            f"the run directory {run_dir} cannot be made ({error.strerror}); set runs_dir to one you can write"
        ) from error
