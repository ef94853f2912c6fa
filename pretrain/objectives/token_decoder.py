"""The decoder that MAGE and MAR put behind their encoder. Letters: B images, N positions, L of them given, D width, F
prefix tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from masking.recap import KeyValues
from pretrain.backbones.flops import Sizes, block_flops
from pretrain.backbones.layers import NORM_EPS, initialize, run_block
from pretrain.objectives.token_model import TokenModel
from pretrain.ranges import check_width
from pretrain.tokenizers.token_block import TokenBlock
from pretrain.tokenizers.token_vit import TokenViT


class TokenDecoder(nn.Module):
    """Blocks over all positions, prefix in front, with positions of its own."""

    def __init__(self, backbone: TokenViT, depth: int, heads: int) -> None:
        super().__init__()
        self.checkpointing = False
        width, self.num_prefix = backbone.width, backbone.num_prefix
        self.embed = nn.Linear(width, width)
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix + backbone.grid.num_patches, width))
        self.blocks = nn.ModuleList(TokenBlock(width, heads, dropout=backbone.dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        initialize(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor, slots: Tensor | None = None, memory: KeyValues | None = None) -> Tensor:
        """Rows x (B, L, D) at slots (B, L), all where None, without positions: (B, L, D) after the last norm."""
        x = x + (self.pos_embed if slots is None else self.pos_embed[0, slots])
        for index, block in enumerate(self.blocks):
            x = run_block(block, x, memory, index, checkpointing=self.checkpointing)
        return self.norm(x)


class DecodedTokenModel(TokenModel):
    """A token model whose hidden tokens are predicted by a decoder."""

    def __init__(self, backbone: TokenViT, depth: int, heads: int) -> None:
        super().__init__(backbone)
        check_width("objective.decoder_", backbone.width, heads)
        self.decoder = TokenDecoder(backbone, depth, heads)

    @property
    def checkpointing(self) -> bool:
        """Whether the decoder's blocks are recomputed in backward."""
        return self.decoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.decoder.checkpointing = on


def decoder_flops(sizes: Sizes, depth: int, num_encoded: int) -> float:
    """FLOPs of one image's forward through a `TokenDecoder`, which projects so many encoded tokens and the prefix."""
    blocks = depth * block_flops(sizes.num_patches + sizes.num_prefix, sizes.width)
    return blocks + 2 * (num_encoded + sizes.num_prefix) * sizes.width**2
