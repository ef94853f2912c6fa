"""The way out: a run's encoder as a safetensors file that timm loads strictly, with the config.json of its hub format.

Nothing is published that was not proved: the file is written under a temporary name, loaded by timm itself, compared
tensor by tensor and by its output on random images, and only then renamed. Decoder, mask token, optimizer and settings
stay behind: timm takes any state dict with a `mask_token` for DINOv2's, and only tensors load everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from masking.mask import Grid
from masking.rng import generator
from pretrain.backbones.base import Backbone
from pretrain.backbones.positions import resize_positions
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config, read_config
from pretrain.engine.load import Loaded, load_backbone
from pretrain.errors import ConfigError, LacunaError
from pretrain.patches import normalize
from pretrain.timm_shim import import_timm

_PATCHES = {"tiny": (16,), "small": (16, 8, 32), "base": (16, 8, 32), "large": (16, 14, 32), "huge": (14,)}  # in timm
TOLERANCE = 1e-4  # of the largest feature; float32 sums in another order differ by about 1e-6 of it


class ExportError(LacunaError):
    """What was written does not give timm the same encoder; nothing was published."""


@dataclass(frozen=True)
class Parity:
    """What timm made of a file it loaded whole."""

    loaded: int  # tensors; none is missing and none unexpected, or there is no Parity
    max_difference: float  # between timm's features and ours, on random images
    scale: float  # the largest of our features

    def __str__(self) -> str:
        return (
            f"{self.loaded} loaded / 0 missing / 0 unexpected, max difference {self.max_difference:.1e} "
            f"in features up to {self.scale:.1f}"
        )


@dataclass(frozen=True)
class ExportReport:
    """What was published, and how to load it; printed as a few lines."""

    weights: Path
    config: Path
    architecture: str
    model_args: dict[str, Any]
    step: int
    which: str  # ema or model
    parity: Parity

    @property
    def call(self) -> str:
        """The line of Python that loads it."""
        args = "".join(f", {name}={value!r}" for name, value in self.model_args.items())
        return f'timm.create_model("{self.architecture}", num_classes=0{args}, checkpoint_path="{self.weights}")'

    def __str__(self) -> str:
        lines = [f"{self.weights}: step {self.step} ({self.which}) as {self.architecture}", f"  {self.parity}"]
        if self.model_args:
            named = ", ".join(self.model_args)
            lines.append(f"  timm has no model of just this shape: {self.architecture} is built with other {named}")
        return "\n".join([*lines, f"  load it: {self.call}"])


def export(
    run_dir: Path,
    to: str,
    out: Path,
    weights: str = "ema",
    step: int | None = None,
    *,
    force: bool = False,
    image_size: tuple[int, int] | None = None,
    license_name: str | None = None,
) -> ExportReport:
    """Writes the encoder of a run's checkpoint to out: a .safetensors file with config.json beside it, or a folder that
    gets both. image_size (height, width) resizes the positions; license_name goes into config.json as it is.

    Raises ConfigError for what cannot be meant, before a weight is read, and ExportError where timm's encoder differs.
    """
    if to != "timm":
        raise ConfigError(f"--to {to}: only timm is known; its files load wherever timm's ViT weights do")
    target, config_path = _paths(Path(out), force)
    import_timm()
    _timms(read_config(Path(run_dir) / "config.json"))
    loaded = load_backbone(run_dir, weights, step)
    if image_size is not None:
        loaded = replace(loaded, backbone=resized(loaded.backbone, loaded.config, image_size))
    return write_timm(loaded, target, config_path, license_name)


def write_timm(loaded: Loaded, target: Path, config_path: Path, license_name: str | None = None) -> ExportReport:
    """Writes the encoder to target and what it is to config_path: both, or neither where timm's encoder differs."""
    backbone, data = loaded.backbone, loaded.config.data
    architecture, args = timm_architecture(_timms(loaded.config), backbone.grid, backbone.in_chans)
    hub = _hub_config(backbone, loaded.config, architecture, args, license_name)
    origin = f"run {loaded.config.name}, step {loaded.step}, {loaded.which} weights"
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, hub_draft = (path.with_name(f".{os.getpid()}-{path.name}") for path in (target, config_path))
    try:
        save_file(_tensors(backbone), draft, {"format": "pt", "origin": origin})
        parity = check_in_timm(draft, backbone, architecture, args, data.mean, data.std)
        hub_draft.write_text(json.dumps(hub, indent=2) + "\n")
        draft.chmod(hub_draft.stat().st_mode)  # safetensors lets nobody else read its files, whatever the umask says
        for written, name in ((hub_draft, config_path), (draft, target)):
            _flush(written)
            os.replace(written, name)
        _flush(target.parent)
    finally:
        draft.unlink(missing_ok=True)
        hub_draft.unlink(missing_ok=True)
    return ExportReport(target, config_path, architecture, args, loaded.step, loaded.which, parity)


def check_in_timm(
    path: Path, backbone: Backbone, architecture: str, args: dict[str, Any], mean: Sequence[float], std: Sequence[float]
) -> Parity:
    """Loads path in timm, strictly, and compares every tensor and the features of random uint8 images with backbone's;
    timm gets them normalised by mean and std. Raises ExportError where anything is missing, unexpected or different."""
    timm = import_timm()
    model = timm.create_model(architecture, num_classes=0, **args).eval()
    theirs, found = model.state_dict(), load_file(path)
    missing, unexpected = sorted(set(theirs) - set(found)), sorted(set(found) - set(theirs))
    if missing or unexpected:
        raise ExportError(
            f"timm's {architecture} misses {missing[:5]} and does not know {unexpected[:5]}; nothing was written"
        )
    try:
        timm.models.load_checkpoint(model, str(path), strict=True)
    except RuntimeError as error:
        raise ExportError(f"timm's {architecture} does not load the file: {error}; nothing was written") from error
    ours = _tensors(backbone)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, ours[name])]
    if changed:
        raise ExportError(f"timm's {architecture} has other values in {changed[:5]}; nothing was written")
    difference, scale = _compare(model, backbone, mean, std)
    if not difference <= TOLERANCE * scale:
        raise ExportError(
            f"timm's {architecture} gives features that differ by {difference:.2e}, and {TOLERANCE * scale:.2e} is "
            "allowed; nothing was written"
        )
    return Parity(len(found), difference, scale)


def timm_architecture(config: ViTConfig, grid: Grid, in_chans: int) -> tuple[str, dict[str, Any]]:
    """The timm model of this shape, or the nearest, and the arguments of create_model in which it differs."""
    overridden = config.dimensions() != replace(config, width=None, depth=None, heads=None).dimensions()
    name, have = _nearest(config, overridden)
    width, depth, heads = config.dimensions()
    want: dict[str, Any] = {
        "img_size": [grid.height * config.patch_size, grid.width * config.patch_size],
        "patch_size": config.patch_size,
        "in_chans": in_chans,
        "init_values": config.layer_scale,
        "reg_tokens": config.registers,
        "no_embed_class": config.registers > 0,
        "class_token": config.class_token,
    }
    args = {key: value for key, value in want.items() if have[key] != value}
    if overridden:
        args |= {"embed_dim": width, "depth": depth, "num_heads": heads}
    if not config.class_token:
        args |= {"global_pool": "avg", "fc_norm": False}  # timm would rename the last norm
    return name, args


def resized(backbone: Backbone, config: Config, image_size: tuple[int, int]) -> Backbone:
    """A copy of backbone for images of image_size (height, width)."""
    p = backbone.patch_size
    if any(size < p or size % p for size in image_size):
        raise ConfigError(f"image size {image_size}: height and width must be multiples of the patch size, {p}")
    grid = Grid(image_size[0] // p, image_size[1] // p)
    copy = config.backbone.build(grid, backbone.in_chans, backbone.mean, backbone.std)
    state = backbone.state_dict()
    copy.load_state_dict(state | {"pos_embed": resize_positions(state["pos_embed"], backbone.grid, grid)})
    return copy.eval()


def _timms(config: Config) -> ViTConfig:
    """The encoder's settings; raises ConfigError for one that timm does not have."""
    if not isinstance(config.backbone, ViTConfig):
        name = type(config.backbone).__name__.removesuffix("Config")
        raise ConfigError(
            f"--to timm: run {config.name} trained {name}, and timm has no such architecture; only ViT can be exported "
            "to it. Evaluate this run with `lacuna evaluate`, which reads the checkpoint itself"
        )
    return config.backbone


def _nearest(config: ViTConfig, overridden: bool) -> tuple[str, dict[str, Any]]:
    """A timm model and its own arguments. One whose registers or layer scale are not wanted is never the nearest."""
    size, p, registers, scaled = config.size, config.patch_size, config.registers, config.layer_scale is not None
    plain = {"img_size": [224, 224], "patch_size": p, "in_chans": 3, "init_values": None, "reg_tokens": 0,
             "no_embed_class": False, "class_token": True}
    if size in ("small", "base", "large") and (p, registers, scaled, config.class_token) == (14, 4, True, True):
        own = {"img_size": [518, 518], "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
        return f"vit_{size}_patch14_reg4_dinov2", plain | own
    if size == "base" and (p, registers, config.class_token) == (16, 4, False):
        own = {"img_size": [256, 256], "reg_tokens": 4, "no_embed_class": True, "class_token": False}
        return "vit_base_patch16_reg4_gap_256", plain | own
    patch = p if p in _PATCHES[size] and not overridden else _PATCHES[size][0]
    return f"vit_{size}_patch{patch}_224", plain | {"patch_size": patch}


def _hub_config(
    backbone: Backbone, config: Config, architecture: str, args: dict[str, Any], license_name: str | None
) -> dict[str, Any]:
    """What timm's hub format keeps in config.json."""
    height, width = (side * backbone.patch_size for side in (backbone.grid.height, backbone.grid.width))
    about = {
        "tag": "mae",
        "custom_load": False,
        "input_size": [backbone.in_chans, height, width],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": license_name,
    }
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.width,
        "global_pool": args.get("global_pool", "token"),
        "model_args": args,
        "pretrained_cfg": about,
    }


@torch.no_grad()
def _compare(model: nn.Module, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    """Largest difference of timm's features from backbone's, and the largest of those."""
    p, grid = backbone.patch_size, backbone.grid
    shape = (2, backbone.in_chans, grid.height * p, grid.width * p)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "export"))
    ours = backbone.eval()(backbone.embed(images)).sequence
    theirs = model.forward_features(normalize(images, mean, std))  # type: ignore[operator]  # timm's, untyped
    return float((ours - theirs).abs().max()), float(ours.abs().max())


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in backbone.state_dict().items()}


def _paths(out: Path, force: bool) -> tuple[Path, Path]:
    """Where weights and config go; refuses what is there already."""
    if out.suffix == ".safetensors":
        target, config_path = out, out.parent / "config.json"
    elif out.suffix in (".pth", ".pt", ".bin", ".ckpt", ".tar"):
        raise ConfigError(
            f"--out {out}: only safetensors is written, for it cannot run code; name it {out.stem}.safetensors"
        )
    else:
        target, config_path = out / "model.safetensors", out / "config.json"
    for path in (target, config_path):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists; give another --out, best a new folder, or replace it with --force")
    return target, config_path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
