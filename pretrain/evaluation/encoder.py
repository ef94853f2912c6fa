"""What features are read off: whole images in, a sequence of tokens out, whoever made the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError
from pretrain.types import Features


class Encoder(nn.Module):
    """An encoder that is only read. The base is what an encoder of somebody else's has to answer."""

    width: int  # D
    depth: int | None  # blocks that can be asked for; None: the end alone
    has_class_token: bool

    def features(self, images: Tensor, layer: int) -> Features:
        """The sequence of whole images (B, C, H, W) uint8 behind block layer, -1 for the end: (B, prefix + N, D)."""
        raise NotImplementedError

    def check(self, pool: str, layer: int) -> None:
        """Raises ConfigError where it has no such pooling or block."""
        if pool not in ("mean", "cls"):
            raise ConfigError(f"pool={pool!r}; use mean (of the patch tokens) or cls (the class token)")
        if pool == "cls" and not self.has_class_token:
            raise ConfigError("pool=cls needs a class token and this encoder has none; use pool=mean")
        if self.depth is None and layer != -1:
            raise ConfigError(f"layer={layer}: of a model of timm's the end alone is read; use layer=-1")
        if self.depth is not None and not -1 <= layer < self.depth:
            raise ConfigError(f"layer={layer}; this encoder's blocks are 0 to {self.depth - 1}, or -1 for the last")


class OwnEncoder(Encoder):
    """One of our backbones. The norm behind the last block is put behind whichever is asked for."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.width, self.depth = backbone, backbone.width, len(backbone.blocks)
        self.has_class_token = getattr(backbone, "cls_token", None) is not None

    def features(self, images: Tensor, layer: int) -> Features:
        """As `Encoder.features`."""
        backbone = self.backbone
        ids = torch.arange(backbone.grid.num_patches, device=images.device).expand(len(images), -1)
        tokens = backbone.embed(images)
        last = layer in (-1, len(backbone.blocks) - 1)
        found = backbone(tokens, ids, layers=() if last else (layer,))
        return found if last else Features(backbone.norm(found.layers[0]), found.num_prefix, ())
