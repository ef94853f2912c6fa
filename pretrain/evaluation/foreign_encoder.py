"""The encoder of an export or a published file: what `init_from` reads, in the backbone that its tensors ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masking.mask import Grid
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.saved import FORMAT, read_about
from pretrain.backbones.vit import SIZES, ViTConfig
from pretrain.data.settings import DataConfig
from pretrain.errors import ConfigError
from pretrain.init.fit import fit_encoder
from pretrain.init.foreign import Foreign, read_encoder
from pretrain.weights_file import read_settings

_HEAD_WIDTH = 64  # of every published ViT whose width is not in SIZES
_SIDE_PX = 224  # where nothing says for which images an encoder is


def open_foreign(source: str) -> tuple[Backbone, DataConfig, tuple[str, ...]]:
    """The encoder of a file or folder, on the CPU, in eval mode; size, channels and normalisation of its images (no
    shards are named); and what had to be assumed. Raises ConfigError where anything of it is missing."""
    foreign = read_encoder(source)
    backbone, notes = _drawn(foreign, source)
    _fill(backbone, foreign)
    size = (backbone.grid.height * backbone.patch_size, backbone.grid.width * backbone.patch_size)
    data = DataConfig("", image_size=size, in_chans=backbone.in_chans, mean=backbone.mean, std=backbone.std)
    return backbone, data, (*foreign.notes, *notes)


def untrained_like(source: str) -> Backbone:
    """The same encoder with drawn weights."""
    return _drawn(read_encoder(source), source)[0]


def _drawn(foreign: Foreign, source: str) -> tuple[Backbone, tuple[str, ...]]:
    """The encoder that foreign's tensors ask for, with weights of seed 0, and what had to be assumed; torch's own
    random state is left as it was."""
    config, notes = _config(foreign, _settings(Path(source)), source)
    channels = int(_patches(foreign)[1])
    normal, said = _normal(foreign, channels)
    grid, where = _grid(foreign, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = config.build(grid, channels, *normal)
    return backbone.eval().requires_grad_(False), (*notes, *said, *where)


def _settings(path: Path) -> Mapping[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_settings(file, "it says how the encoder is built") if file.is_file() else {}


def _patches(foreign: Foreign) -> tuple[int, ...]:
    """Shape (D, C, p, p) of the projection of patches."""
    projection = foreign.encoder.get("patch_embed.proj.weight")
    if projection is None or projection.ndim != 4:
        raise ConfigError(f"{foreign.origin} is no encoder of patches of pixels; `lacuna evaluate` takes its run")
    return tuple(projection.shape)


def _config(foreign: Foreign, settings: Mapping[str, Any], source: str) -> tuple[BackboneConfig, tuple[str, ...]]:
    if settings.get("format") == FORMAT:
        path = Path(source)
        return read_about((path if path.is_dir() else path.parent) / "config.json").backbone, ()
    state = foreign.encoder
    if "blocks.0.mlp.fc3.weight" in state:
        raise ConfigError(
            f"{foreign.origin} is an iLLaMA, whose tensors do not say how it is built; give its run, or the folder "
            "that `lacuna export --to plain` wrote"
        )
    width, _, patch, _ = _patches(foreign)
    heads, notes = _heads(settings, width)
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    config = ViTConfig(
        patch_size=patch,
        class_token="cls_token" in state,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        positions="learned",  # whatever table there is
        layer_scale=1.0 if "blocks.0.ls1.gamma" in state else None,
        width=width,
        depth=depth,
        heads=heads,
    )
    config.check()
    return config, notes


def _heads(settings: Mapping[str, Any], width: int) -> tuple[int, tuple[str, ...]]:
    """What config.json says, else what published models of this width have, and a word about that."""
    about = {**settings, **(settings.get("vision_config") or {}), **(settings.get("model_args") or {})}
    for name in ("num_heads", "num_attention_heads"):
        if isinstance(about.get(name), int):
            return int(about[name]), ()
    heads = {wide: heads for wide, _, heads in SIZES.values()}.get(width, max(width // _HEAD_WIDTH, 1))
    return heads, (f"nothing says how many heads its attention has: {heads}, as published ViTs of width {width}",)


def _normal(foreign: Foreign, channels: int) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], tuple[str, ...]]:
    if foreign.normal is not None:
        return foreign.normal, ()
    usual = DataConfig("")
    normal = (usual.mean, usual.std) if channels == len(usual.mean) else ((0.5,) * channels, (0.5,) * channels)
    return normal, (f"nothing says how its images were normalised: mean {normal[0]}, std {normal[1]}",)


def _grid(foreign: Foreign, config: BackboneConfig) -> tuple[Grid, tuple[str, ...]]:
    if foreign.grid is not None:
        return foreign.grid, ()
    table: Tensor | None = foreign.encoder.get("pos_embed")
    if table is not None and table.ndim == 3:
        for slots in (config.num_prefix, 0):
            side = round((table.shape[1] - slots) ** 0.5)
            if side and side * side == table.shape[1] - slots:
                return Grid(side, side), ()
    side = _SIDE_PX // config.patch_size
    return Grid(side, side), (f"nothing says for which images it is: {side * config.patch_size} px",)


def _fill(backbone: Backbone, foreign: Foreign) -> None:
    fitted = fit_encoder(foreign, backbone, partial=True)
    wrong = [*fitted.fresh, *fitted.left]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ConfigError(
            f"{foreign.origin} does not hold the whole of an encoder that is known here: {', '.join(wrong[:4])}{more} "
            "are missing, or unknown, or of another shape; it can be fine-tuned with init_parts=fitting, not measured"
        )
    backbone.load_state_dict(fitted.state)
