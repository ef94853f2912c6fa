"""Positions for images of another size, as the encoder that they belong to keeps them."""

from __future__ import annotations

from torch import Tensor

from masking.mask import Grid
from pretrain.backbones import illama_published, positions
from pretrain.backbones.base import Backbone
from pretrain.backbones.illama import Illama


def resize_positions_of(backbone: Backbone, table: Tensor, old: Grid, new: Grid) -> Tensor:
    """table (1, slots + N, D), of a grid old, for a grid new: (1, slots + M, D). An iLLaMA whose class token stands
    last has its slot behind the patches, every other encoder before them."""
    last = isinstance(backbone, Illama) and backbone.config.class_token == "last"
    resize = illama_published.resize_positions if last else positions.resize_positions
    return resize(table, old, new)
