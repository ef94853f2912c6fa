"""The plain weights that a sparse run's tensors stand for: what everyone but the run itself reads of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pretrain.sparse.composable import changed
from pretrain.sparse.container import Kind, Part
from pretrain.sparse.mask_tuning import masked
from pretrain.sparse.two_four import hard_mask, pruned

_PART = re.compile(r"(.+\.)parametrizations\.weight\.(?:original|0\.(\w+))", re.DOTALL)


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """state with each sparse weight as one plain tensor under its plain name; what is plain already passes as it is."""
    plain = {name: tensor for name, tensor in state.items() if _PART.fullmatch(name) is None}
    return plain | {name: _weight(parts) for name, parts in sparse_parts(state).items()}


def sparse_parts(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What state holds of each sparse weight, by its plain name: the frozen "base", and what is trained about it."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _PART.fullmatch(name)
        if match:
            found.setdefault(f"{match[1]}weight", {})[match[2] or "base"] = tensor
    return found


def _weight(parts: dict[str, Tensor]) -> Tensor:
    base = parts["base"]
    if "difference" in parts:
        return changed(base, parts["keep"], parts["difference"])
    return masked(base, parts["margins"]) if "margins" in parts else pruned(base, parts["logits"])


def change_of(parts: dict[str, Tensor]) -> tuple[Kind, Part]:
    """A sparse weight's parts as a file has them: a difference at chosen positions, or which weights are kept."""
    if "difference" in parts:
        chosen = parts["keep"] != 0
        return "difference", Part(chosen, parts["difference"][chosen])
    return "kept", Part(parts["margins"] > 0 if "margins" in parts else hard_mask(parts["logits"]))
