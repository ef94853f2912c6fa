"""To our own reader: safetensors under our names, and a config.json that pretrain.backbones.saved.load_encoder builds
the encoder from. The way out for encoders that no other library has."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from pretrain.backbones.base import Backbone
from pretrain.backbones.saved import FORMAT, load_encoder
from pretrain.config import Config, to_json
from pretrain.errors import ConfigError
from pretrain.export.parity import proved, require_names, sample
from pretrain.export.report import ExportError, Written
from pretrain.export.target import Job, Target


def _check(config: Config) -> None:
    if "tokenizer" in config.backbone.answers:
        raise ConfigError(
            f"--to plain: run {config.name} trained a tokenizer, which is no encoder of features; `lacuna tokenize` "
            "and backbone.tokenizer read the run itself"
        )


def _write(job: Job) -> Written:
    backbone, config = job.loaded.backbone, job.loaded.config
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    save_file(tensors, job.file, {"format": "pt"})
    about = {
        "format": FORMAT,
        "backbone": to_json(config.backbone),
        "image_size": [side * backbone.patch_size for side in (backbone.grid.height, backbone.grid.width)],
        "in_chans": backbone.in_chans,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "license": job.license_name,
    }
    (job.folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    call = (
        "from pretrain.backbones.saved import load_encoder\n"
        f'encoder = load_encoder("{job.final.parent}")\n'
        "features = encoder(encoder.embed(images)).sequence"
    )
    again = load_encoder(job.folder)
    require_names(tensors, {name: tuple(t.shape) for name, t in again.state_dict().items()}, "load_encoder")
    _require_equal(again, backbone)
    parity = proved(sample(again).sequence, sample(backbone).sequence, len(tensors), "load_encoder")
    return Written(type(config.backbone).__name__.removesuffix("Config"), call, parity)


def _require_equal(again: Backbone, backbone: Backbone) -> None:
    theirs = again.state_dict()
    changed = [name for name, tensor in backbone.state_dict().items() if not torch.equal(theirs[name], tensor)]
    if changed:
        raise ExportError(f"load_encoder has other values in {changed[:5]}; nothing was written")


_SAYS = "lacuna's own load_encoder, any encoder"
PLAIN = Target(_SAYS, "model.safetensors", _check, _write, ("config.json",), only_folder=True)
