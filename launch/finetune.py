"""`lacuna finetune`: `lacuna train` of a classifier that begins with a pretrained encoder, then its accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import environment as env
from launch.start import start
from pretrain.config import Config
from pretrain.errors import ConfigError


def finetune(options: argparse.Namespace) -> Path | None:
    """Trains the run to its last step. Its directory, on the one process that is to measure it; None on others."""

    def require(config: Config) -> None:
        check_finetune(config, from_scratch=options.from_scratch)

    config = start(
        options.config, options.overrides, fresh=options.fresh, allow_change=options.allow_change, require=require
    )
    return config.run_dir if env.detect().rank == 0 else None


def check_finetune(config: Config, *, from_scratch: bool) -> None:
    """Raises ConfigError for a run that is no fine-tuning: without classes, beginning or test images."""
    if config.objective.num_classes is None:
        raise ConfigError(
            f"objective={type(config.objective).__name__} learns no classes, and lacuna finetune trains a classifier; "
            "use a config with a SupervisedConfig, such as configs/finetune_vitb16.py, or lacuna train"
        )
    if config.init_from is None and not from_scratch:
        raise ConfigError(
            "init_from=none: fine-tuning begins with pretrained weights; give init_from=runs/NAME, an export, a file "
            "or a name of timm's, or say --from-scratch for the baseline"
        )
    if config.init_from is not None and from_scratch:
        raise ConfigError(f"init_from={config.init_from} and --from-scratch exclude each other; leave one of them out")
    if config.data.val is None and config.data.train != "embedded":
        raise ConfigError("data.val=none: the accuracy at the end needs labelled images; give data.val='val/*.tar'")
