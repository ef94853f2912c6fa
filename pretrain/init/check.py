"""What can be refused of `init_from` before anything is opened."""

from __future__ import annotations

import re
from pathlib import Path

from pretrain.config import Config
from pretrain.engine.published import has_checkpoint
from pretrain.errors import ConfigError
from pretrain.init.check_sparse import check_sparse


def check_init(config: Config) -> None:
    """Raises ConfigError for a source that is not there, for settings without effect, and for a sparse run that cannot
    be meant. A run that goes on from a
    checkpoint needs its source no more."""
    check_sparse(config)
    source = config.init_from
    if source is None:
        if config.init_parts != "all":
            raise ConfigError(f"init_parts={config.init_parts} has no effect without init_from; set init_parts=all")
        return
    if has_checkpoint(config.run_dir):
        return
    path = Path(source)
    if path.exists():
        if path.is_dir() and path.resolve() == config.run_dir.resolve():
            raise ConfigError(f"init_from={source} is this run itself; the same command goes on with a run")
        return
    if not re.fullmatch(r"(timm:)?[a-z0-9_]+(\.[a-z0-9_]+)?", source) or path.suffix in (".pth", ".pt", ".bin"):
        raise ConfigError(
            f"init_from={source} does not exist; give a run's directory, an export, a file of weights, a folder of "
            "Hugging Face's, or the name of a model of timm's"
        )
