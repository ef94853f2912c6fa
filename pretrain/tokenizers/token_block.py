"""A transformer block over tokens, under timm's names, whose attention may leave keys and values behind or use some
again (masking/recap.py)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from masking.attention.op import self_attention
from masking.recap import KeyValues
from pretrain.backbones.layers import Block


class TokenBlock(Block):
    """Pre-norm, or post-norm as in BERT and MaskGIT; dropout on what attention and MLP add. There is none on attention
    weights, which the fused kernels never hold."""

    def __init__(self, width: int, num_heads: int, *, post_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(width, num_heads)
        self.post_norm = post_norm
        self.drop = nn.Dropout(dropout)

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: KeyValues | None = None, layer: int = 0
    ) -> Tensor:
        """x (B, L, D) to (B, L, D). With a memory the L rows are what its pass is over; layer is this block's
        number."""
        if self.post_norm:
            x = self.norm1(x + self.drop(self._attend(x, memory, layer)))
            return self.norm2(x + self.drop(self.mlp(x)))
        x = x + self.drop(self._attend(self.norm1(x), memory, layer))
        return x + self.drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, memory: KeyValues | None, layer: int) -> Tensor:
        qkv = rearrange(self.attn.qkv(x), "b l (three h e) -> b l three h e", three=3, h=self.attn.num_heads)
        out = self_attention(qkv) if memory is None else memory.attend(layer, qkv)
        return self.attn.proj(rearrange(out, "b l h e -> b l (h e)"))
