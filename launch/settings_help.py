"""The settings every config has, for `lacuna train --help`."""

from __future__ import annotations

from masking.strategies.uniform import Uniform
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.config_help import render
from pretrain.data.settings import DataConfig
from pretrain.objectives.pixel import PixelMAEConfig


def all_settings() -> str:
    """The table of every setting of an MAE config, with defaults."""
    data = DataConfig(train="SHARDS")
    return render(Config("NAME", data, ViTConfig(), PixelMAEConfig(), Uniform(), epochs=800))
