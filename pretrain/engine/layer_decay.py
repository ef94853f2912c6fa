"""Smaller rates for earlier layers: an encoder that is pretrained already should move least where it is most general
(Bao et al., "BEiT", section 3; He et al., "Masked Autoencoders Are Scalable Vision Learners", appendix A.2).

Layer 0 is what comes before the blocks: patch projection, class token, positions. Blocks are layers 1 to L; the last
norm, head and decoder are layer L + 1, at the full rate, as in MAE's code."""

from __future__ import annotations

import re

from torch import nn

_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def rate_scales(model: nn.Module, decay: float | None) -> dict[str, float]:
    """Name of every trainable parameter of model -> decay ** (L + 1 - layer), the factor of its learning rate; 1 for
    all where decay is None."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if decay is None:
        return dict.fromkeys(names, 1.0)
    num_blocks = 1 + max((int(found[1]) for found in map(_BLOCK.match, names) if found), default=-1)
    assert num_blocks, "checks.py refuses layer_decay for encoders without blocks"
    return {name: decay ** (num_blocks + 1 - layer_of(name, num_blocks)) for name in names}


def layer_of(name: str, num_blocks: int) -> int:
    """The layer, 0 to num_blocks + 1, of the parameter that a checkpoint calls name."""
    block = _BLOCK.match(name)
    if block:
        return int(block[1]) + 1
    is_first = name.startswith("backbone.") and not name.startswith("backbone.norm.")
    return 0 if is_first else num_blocks + 1
