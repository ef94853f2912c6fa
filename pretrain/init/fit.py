"""Somebody's weights in an encoder or an objective of ours: every tensor of both sides is accounted for, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor, nn

from masking.mask import Grid
from pretrain.backbones import illama_published
from pretrain.backbones.base import Backbone
from pretrain.backbones.illama import Illama
from pretrain.backbones.resize import resize_positions_of
from pretrain.errors import ConfigError
from pretrain.init.foreign import Foreign
from pretrain.init.mask import with_own_mask

_SHOWN = 4


@dataclass(frozen=True)
class Fitted:
    """What goes into a module, and what became of both sides."""

    state: dict[str, Tensor]  # the module's whole state dict
    taken: tuple[str, ...]  # names that come from the source
    fresh: tuple[str, ...]  # names that stay as they were drawn
    left: tuple[str, ...]  # names of the source, as ours, that found no place
    positions: str = ""  # of an encoder: what happened to them
    mask: str = ""  # of an iLLaMA: what it was, and is


def fit_encoder(foreign: Foreign, backbone: Backbone, *, partial: bool = False, free_mask: bool = False) -> Fitted:
    """The source's encoder for backbone, its positions resized to backbone's grid; identical where the grids are.

    Raises ConfigError, naming the tensors, where any is missing, unknown or of another shape. partial takes what fits
    and leaves the rest as backbone has it; free_mask: see `with_own_mask`."""
    own = backbone.state_dict()
    if not foreign.encoder:
        raise ConfigError(f"{foreign.origin} holds no encoder")
    state, positions = _with_positions(_complete(foreign.encoder, backbone), foreign, backbone)
    _check_patches(state, own, foreign, partial=partial)
    state, mask = with_own_mask(state, backbone, foreign.origin, free=free_mask)
    return replace(_fitted(state, own, foreign, "encoder", partial=partial), positions=positions, mask=mask)


def fit_objective(foreign: Foreign, objective: nn.Module, *, partial: bool = False) -> Fitted:
    """The source's decoder and heads for an objective of the same kind; refused as `fit_encoder` refuses."""
    prefix = "objective."
    state = {name.removeprefix(prefix): t for name, t in foreign.state.items() if name.startswith(prefix)}
    return _fitted(state, objective.state_dict(), foreign, "objective", partial=partial)


def _fitted(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], foreign: Foreign, part: str, *, partial: bool
) -> Fitted:
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    if (missing or unknown or other) and not partial:
        raise ConfigError(_refusal(missing, unknown, other, state, own, foreign, part))
    taken = tuple(name for name in own if name in state and name not in other)
    merged = {name: state[name].to(tensor.dtype) if name in taken else tensor for name, tensor in own.items()}
    return Fitted(merged, taken, tuple(n for n in own if n not in taken), (*unknown, *other))


def _refusal(
    missing: list[str], unknown: list[str], other: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor],
    foreign: Foreign, part: str,
) -> str:  # fmt: skip
    said = []
    if missing:
        said.append(f"it lacks {_some(missing)}")
    if unknown:
        said.append(f"it has {_some(unknown)}, which this {part} has not")
    if other:
        shapes = [f"{name} {list(state[name].shape)} where {list(own[name].shape)} is wanted" for name in other]
        said.append(_some(shapes))
    if part == "encoder" and any(name.startswith("fc_norm.") for name in foreign.dropped):
        said.append("it was pooled by mean, and its fc_norm is a norm of the mean and not of each token")
    cure = "init_parts=encoder leaves it out" if part == "objective" else "give a backbone of the same shape"
    return (
        f"the {part} in {foreign.origin} does not fit: {'; '.join(said)}. Of {len(own)} tensors "
        f"{len(own) - len(missing) - len(other)} fit; {cure}, or init_parts=fitting takes what fits and leaves the "
        "rest fresh"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _complete(encoder: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """encoder, with what iLLaMA's authors do not write into their files."""
    if isinstance(backbone, Illama) and "layout" not in encoder and "blocks.0.mlp.fc3.weight" in encoder:
        return illama_published.published(encoder)
    return encoder


def _check_patches(state: Mapping[str, Tensor], own: Mapping[str, Tensor], foreign: Foreign, *, partial: bool) -> None:
    """The first thing that differs where patches or channels do, said on its own."""
    name = "patch_embed.proj.weight"
    if partial or name not in state or name not in own or state[name].shape[1:] == own[name].shape[1:]:
        return
    (theirs, patch), (ours, size) = ((tuple(t[name].shape)[1:3]) for t in (state, own))
    raise ConfigError(
        f"{foreign.origin} cuts patches of {patch} px with {theirs} channels, and this run patches of {size} px with "
        f"{ours}: backbone.patch_size={patch} and data.in_chans={theirs} would fit; or init_parts=fitting begins with "
        "a fresh projection"
    )


def _with_positions(state: dict[str, Tensor], foreign: Foreign, backbone: Backbone) -> tuple[dict[str, Tensor], str]:
    """state with positions for backbone's grid, and what was done."""
    table, own, new = state.get("pos_embed"), backbone.state_dict().get("pos_embed"), backbone.grid
    if table is None or own is None or table.ndim != 3:
        return state, "fresh" if own is not None else "none"
    slots = own.shape[1] - new.num_patches
    old = foreign.grid or _square(table.shape[1] - slots) or new
    if table.shape[1] - slots != old.num_patches:
        return state, "of another kind"  # which is then said by names and shapes
    words = f"{old.height}x{old.width} -> {new.height}x{new.width}"
    if old == new:
        return state, f"{words}, as they are"
    with torch.no_grad():
        resized = resize_positions_of(backbone, table, old, new)
    return {**state, "pos_embed": resized}, f"{words}, resized"


def _square(num_patches: int) -> Grid | None:
    side = isqrt(max(num_patches, 0))
    return Grid(side, side) if side and side * side == num_patches else None
