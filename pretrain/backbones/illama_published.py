"""iLLaMA's published weights, and its positions for another image size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from masking.mask import Grid
from pretrain.backbones.illama_mask import Layout
from pretrain.backbones.positions import resize_patch_positions


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights, as in the "model" of one of their files, as a state dict of our encoder. Names are the
    same; the classifier is left out. Their files do not say how later tokens counted: their code does, in mode paper
    with the class token last, and alpha 0, where every one of their schedules ends."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    depth = 1 + max(int(name.split(".")[1]) for name in kept if name.startswith("blocks."))
    return kept | {"alpha": torch.tensor(0.0), "layout": torch.tensor(Layout().numbers(depth))}


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """The positions table (1, N + 1, D) of grid old for grid new; the last row, the class token's, stays. Turns are not
    rescaled: a patch keeps its place in raster order, and the one below it is a row of the new grid away."""
    if table.shape[1] != old.num_patches + 1:
        raise ValueError(f"positions of {table.shape[1]} rows; a grid of {old.height} x {old.width} has "
                         f"{old.num_patches} and one of the class token")  # fmt: skip
    return torch.cat([resize_patch_positions(table[:, :-1], old, new), table[:, -1:]], dim=1)
