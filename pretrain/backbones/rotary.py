"""Rotary positions as LLaMA has them: pairs of neighbouring channels turned by an angle that grows with the place (Su
et al., "RoFormer", section 3.4.2). The score of two tokens then depends on the difference of their places alone.

Pairs are (2i, 2i + 1), *interleaved*; GPT-NeoX pairs i with i + E / 2, and weights for the one are none for the other.
Letters: B images, L tokens, H heads, E channels of a head."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

THETA = 10_000.0


class Rotary(nn.Module):
    """The turns of places 0 to num_places - 1.

    They are kept as the bits of float32 in an integer buffer, which `module.bfloat16()` leaves alone; they are
    constants of the config, so no state dict holds them."""

    bits: Tensor

    def __init__(self, head_dim: int, num_places: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
        angles = torch.arange(num_places, dtype=torch.float64)[:, None] * THETA**-exponents
        turns = torch.stack([angles.cos(), angles.sin()], dim=-1).float()
        self.register_buffer("bits", turns.view(torch.int32), persistent=False)

    def forward(self, places: Tensor | None = None) -> Tensor:
        """Cosine and sine of places (B, L) int64, or of all: (B or 1, L, E / 2, 2) float32."""
        turns = self.bits.view(torch.float32)
        return turns[None] if places is None else turns[places]


def rotate(parts: Tensor, turns: Tensor, num_turned: int = 2) -> Tensor:
    """A projection (B, L, parts, H, E), of queries, keys and values say, with its first num_turned parts turned by
    turns (B or 1, L, E / 2, 2), in float32 at least; the others as they are."""
    rotated: Tensor = _Rotate.apply(parts, turns, num_turned)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """Backward turns back. Written out, for the parts need not be cut out and put together again, and only the turns
    are kept."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, turns: Tensor, num_turned: int) -> Tensor:
        ctx.save_for_backward(turns)
        ctx.num_turned = num_turned
        return _turned(parts, turns, num_turned)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (turns,) = ctx.saved_tensors
        return _turned(grad, turns, ctx.num_turned, back=True), None, None


def _turned(parts: Tensor, turns: Tensor, num: int, back: bool = False) -> Tensor:
    factors = rearrange(turns, "b l e two -> b l 1 1 e two")
    if torch.compiler.is_compiling():  # the compiler makes one kernel of this, and none of complex numbers
        one, two = _pairs(parts[:, :, :num]).to(torch.promote_types(parts.dtype, torch.float32)).unbind(-1)
        cos, sin = factors.unbind(-1)
        sin = -sin if back else sin
        turned = torch.stack([one * cos - two * sin, one * sin + two * cos], dim=-1).to(parts.dtype)
        return torch.cat([rearrange(turned, "b l part h e pair -> b l part h (e pair)"), parts[:, :, num:]], dim=2)
    complexes = torch.view_as_complex(factors)
    complexes = complexes.conj() if back else complexes
    out = torch.empty_like(parts, memory_format=torch.contiguous_format)
    out[:, :, num:] = parts[:, :, num:]
    if parts.dtype == torch.float32:  # read and written where they lie
        torch.mul(_complex(parts[:, :, :num]), complexes, out=_complex(out[:, :, :num]))
        return out
    wide = parts[:, :, :num].to(torch.promote_types(parts.dtype, torch.float32), memory_format=torch.contiguous_format)
    turned = torch.view_as_real(_complex(wide) * complexes)
    out[:, :, :num] = rearrange(turned, "b l part h e pair -> b l part h (e pair)")
    return out


def _pairs(x: Tensor) -> Tensor:
    """Neighbouring channels of x (B, L, parts, H, E) side by side: (B, L, parts, H, E / 2, 2), a view."""
    return rearrange(x, "b l part h (e pair) -> b l part h e pair", pair=2)


def _complex(x: Tensor) -> Tensor:
    """The same as complex numbers: (B, L, parts, H, E / 2), a view."""
    return torch.view_as_complex(_pairs(x))
