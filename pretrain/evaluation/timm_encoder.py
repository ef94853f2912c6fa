"""A model of timm's as timm has it: its own normalisation, size of image and `forward_features`."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.evaluation.encoder import Encoder
from pretrain.init.foreign import find_timm
from pretrain.timm_shim import import_timm
from pretrain.types import Features


class TimmEncoder(Encoder):
    """Any model of timm's whose features are tokens, or a map, whose places are its tokens then."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        about = import_timm().data.resolve_model_data_config(model)
        self.model, self.width, self.depth = model, int(model.num_features), None
        self.in_chans, self.image_size = int(about["input_size"][0]), tuple(about["input_size"][1:])
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_class_token = getattr(model, "cls_token", None) is not None
        self.normal: tuple[tuple[float, ...], tuple[float, ...]] = (tuple(about["mean"]), tuple(about["std"]))
        for name, values in zip(("mean", "std"), self.normal, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def features(self, images: Tensor, layer: int) -> Features:
        """What forward_features makes of images (B, C, H, W) uint8."""
        found = self.model.forward_features((images.float() / 255 - self.mean) / self.std)
        if isinstance(found, Tensor) and found.ndim == 4:
            axes = "b h w d" if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else "b d h w"
            found = rearrange(found, f"{axes} -> b (h w) d")
        if not isinstance(found, Tensor) or found.ndim != 3:
            raise ConfigError(f"{type(self.model).__name__} of timm's gives no tokens and no map; take another model")
        return Features(found, self.num_prefix)


def open_timm(name: str, *, untrained: bool = False) -> tuple[TimmEncoder, str]:
    """The model of timm's of that name, on the CPU, in eval mode; and where its weights come from: "pretrained: ..."
    for those in the hub's cache of this machine, else "untrained: ...", drawn with seed 0.
    Raises ConfigError."""
    repository, file = find_timm(name)
    timm = import_timm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pretrained = file is not None and not untrained
        overlay = {"file": str(file)} if pretrained else {}
        try:
            model = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=0)
        except (RuntimeError, ValueError, OSError, KeyError, TypeError, AssertionError) as error:
            raise ConfigError(f"timm cannot make {name} ({' '.join(str(error).split())[:300]})") from error
    encoder = TimmEncoder(model.eval().requires_grad_(False))
    if pretrained:
        return encoder, f"pretrained: {repository} ({file.name if file else ''})"
    why = "as asked" if untrained else f"{repository} is not in the hub's cache of this machine"
    return encoder, f"untrained: {why}"
