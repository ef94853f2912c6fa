"""An encoder as a folder: model.safetensors under our own names and a config.json that says how to build it. What
`lacuna export --to plain` writes, and the loader of encoders that no other library has, such as iLLaMA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from masking.mask import Grid
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.config_json import from_json
from pretrain.errors import ConfigError
from pretrain.weights_file import read_settings, read_state

FORMAT = "lacuna-encoder"


@dataclass(frozen=True)
class About:
    """What config.json says of an encoder."""

    backbone: BackboneConfig
    image_size: tuple[int, int]  # height, width
    in_chans: int
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]

    @property
    def grid(self) -> Grid:
        """The patches of its images."""
        height, width = self.image_size
        return Grid(height // self.backbone.patch_size, width // self.backbone.patch_size)


def load_encoder(folder: str | Path) -> Backbone:
    """The encoder that `lacuna export --to plain` wrote into folder: on the CPU, float32, in eval mode.

    encoder(encoder.embed(images)) takes images (B, C, H, W), uint8 or normalised floats, to Features: class token and
    registers in front, then patches. Raises ConfigError for a folder that holds none, or another's weights."""
    folder = Path(folder)
    about = read_about(folder / "config.json")
    encoder = about.backbone.build(about.grid, about.in_chans, about.mean, about.std)
    try:
        encoder.load_state_dict(read_state(folder / "model.safetensors"), strict=True)
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not hold the encoder that its config.json describes: {error}") from error
    return encoder.eval()


def read_about(path: Path) -> About:
    """What the config.json at path says. Raises ConfigError where it is not of such a folder."""
    settings = read_settings(path, "give a folder that `lacuna export --to plain` wrote")
    if settings.get("format") != FORMAT:
        raise ConfigError(f"{path} does not say format={FORMAT}; give a folder that `lacuna export --to plain` wrote")
    try:
        return _about(settings, str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} does not describe an encoder ({type(error).__name__}: {error})") from error


def _about(settings: Mapping[str, Any], source: str) -> About:
    height, width = settings["image_size"]
    backbone = cast("BackboneConfig", from_json(settings["backbone"], source))
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    return About(backbone, (height, width), settings["in_chans"], mean, std)
