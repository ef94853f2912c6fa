"""To timm: a safetensors file that timm loads strictly, with the config.json of its hub format.

timm itself loads the draft, and every tensor and its features of random images are compared. Decoder and mask token
stay behind: timm takes any state dict with a `mask_token` for DINOv2's, and only tensors load everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.export.parity import proved, require_names, sample
from pretrain.export.report import ExportError, Parity, Written
from pretrain.export.target import Job, Target
from pretrain.export.tensors import require_vit, tensors_of
from pretrain.timm_shim import import_timm

_PATCHES = {"tiny": (16,), "small": (16, 8, 32), "base": (16, 8, 32), "large": (16, 14, 32), "huge": (14,)}  # in timm


def _check(config: Config) -> None:
    import_timm()
    require_vit(config, "timm")


def _write(job: Job) -> Written:
    loaded = job.loaded
    backbone, config = loaded.backbone, loaded.config
    architecture, args = timm_architecture(require_vit(config, "timm"), backbone.grid, backbone.in_chans)
    origin = f"run {config.name}, step {loaded.step}, {loaded.which} weights"
    save_file(tensors_of(backbone), job.file, {"format": "pt", "origin": origin})
    hub = _hub_config(backbone, config, architecture, args, job.license_name)
    (job.folder / "config.json").write_text(json.dumps(hub, indent=2) + "\n")
    parity = check_in_timm(job.file, backbone, architecture, args)
    said = "".join(f", {name}={value!r}" for name, value in args.items())
    call = f'timm.create_model("{architecture}", num_classes=0{said}, checkpoint_path="{job.final}")'
    notes = []
    if args:
        notes.append(f"timm has no model of just this shape: {architecture} is built with other {', '.join(args)}")
    if "fc_norm" not in args:
        notes.append('for the mean of the patches add global_pool="avg", fc_norm=False: else timm looks for an fc_norm')
    return Written(architecture, call, parity, args, tuple(notes))


def check_in_timm(path: Path, backbone: Backbone, architecture: str, args: dict[str, Any]) -> Parity:
    """Loads path in timm, strictly, and compares every tensor and the features of random images with backbone's.
    Raises ExportError where anything is missing, unexpected or different."""
    timm = import_timm()
    model, by = timm.create_model(architecture, num_classes=0, **args).eval(), f"timm {timm.__version__}"
    found = load_file(path)
    require_names(found, {name: tuple(t.shape) for name, t in model.state_dict().items()}, f"timm's {architecture}")
    try:
        timm.models.load_checkpoint(model, str(path), strict=True)
    except RuntimeError as error:
        raise ExportError(f"timm's {architecture} does not load the file: {error}; nothing was written") from error
    ours = tensors_of(backbone)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, ours[name])]
    if changed:
        raise ExportError(f"timm's {architecture} has other values in {changed[:5]}; nothing was written")
    seen = sample(backbone)
    with torch.no_grad():
        return proved(model.forward_features(seen.normal), seen.sequence, len(found), by)


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


def _nearest(config: ViTConfig, overridden: bool) -> tuple[str, dict[str, Any]]:
    """A timm model and its own arguments. One whose registers or layer scale are not wanted is never the nearest."""
    size, p, registers, scaled = config.size, config.patch_size, config.registers, config.layer_scale is not None
    plain = {
        "img_size": [224, 224],
        "patch_size": p,
        "in_chans": 3,
        "init_values": None,
        "reg_tokens": 0,
        "no_embed_class": False,
        "class_token": True,
    }
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


TIMM = Target("timm", "model.safetensors", _check, _write, ("config.json",), library_name="timm")
