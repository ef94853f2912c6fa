"""`lacuna finetune`: `lacuna train` of a classifier that begins with a pretrained encoder, then its accuracy; or of a
segmentation, then its mIoU."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import environment as env
from launch.start import start
from pretrain.config import Config, read_config
from pretrain.errors import ConfigError
from pretrain.objectives.base import Segmenting


def finetune(options: argparse.Namespace) -> Path | None:
    """Trains the run to its last step. Its directory, on the one process that is to measure it; None on others."""

    def require(config: Config) -> None:
        check_finetune(config, from_scratch=options.from_scratch)

    config = start(
        options.config, options.overrides, fresh=options.fresh, allow_change=options.allow_change, require=require
    )
    return config.run_dir if env.detect().rank == 0 else None


def measuring(run_dir: Path) -> list[str]:
    """The command that measures such a run."""
    if isinstance(read_config(run_dir / "config.json").objective, Segmenting):
        return ["segment", str(run_dir)]
    return ["evaluate", str(run_dir), "--methods", "head", "--all-images"]


def check_finetune(config: Config, *, from_scratch: bool) -> None:
    """Raises ConfigError for a run that is no fine-tuning: without classes, beginning or test images."""
    if config.objective.num_classes is None and not isinstance(config.objective, Segmenting):
        raise ConfigError(
            f"objective={type(config.objective).__name__} learns no classes, and lacuna finetune trains a classifier; "
            "use a config with a SupervisedConfig, such as configs/finetune_vitb16.py, a SegmentConfig, or lacuna train"
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
