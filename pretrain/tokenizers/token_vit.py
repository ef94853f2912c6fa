"""The encoder of token models: a transformer over a frozen tokenizer's tokens, with tokens in front that say what is
asked for (MaskGIT's class token, MAGE's class slot, MAR's buffer).

It is a backbone as any other: `embed` tokenizes images, so features are measured the same way. Letters: B images, N
positions, L of them given, D width, F prefix tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from masking.mask import Grid, gather_rows
from masking.recap import KeyValues
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import block_flops, last_block_flops
from pretrain.backbones.layers import NORM_EPS, initialize, run_block
from pretrain.backbones.vit import SIZES
from pretrain.ranges import AT_LEAST_1, BELOW_1, Range, check_ranges, check_width
from pretrain.tokenizers.frozen import TokenizerConfig, frozen_tokenizer
from pretrain.tokenizers.token_block import TokenBlock
from pretrain.types import Features

_RANGES: dict[str, Range] = {
    "num_prefix": AT_LEAST_1,
    "classes": AT_LEAST_1,
    "class_drop": BELOW_1,
    "dropout": BELOW_1,
    "width": AT_LEAST_1,
    "depth": AT_LEAST_1,
    "heads": AT_LEAST_1,
}


@dataclass(frozen=True)
class TokenViTConfig:
    """A transformer over the tokens of a frozen tokenizer."""

    tokenizer: TokenizerConfig  # what cuts images into tokens
    size: Literal["tiny", "small", "base", "large", "huge"] = "base"  # width, depth and heads of the published models
    num_prefix: int = 1  # tokens in front that hold the class: 1 in MaskGIT and MAGE, 64 in MAR
    classes: int | None = None  # images are told by their label, one of so many; None: unconditional
    class_drop: float = 0.0  # share of the images trained without their class, for guidance
    post_norm: bool = False  # norms behind the residual sums, as in MaskGIT's BERT, or in front
    dropout: float = 0.1  # of embeddings and of what blocks add
    width: int | None = None  # overrides the size's width
    depth: int | None = None  # overrides the size's number of blocks
    heads: int | None = None  # overrides the size's number of attention heads

    @property
    def patch_size(self) -> int:
        """Side of what one token stands for, pixels."""
        return self.tokenizer.kind().patch_size

    @property
    def has_class_token(self) -> bool:
        """The first prefix token is one."""
        return True

    @property
    def answers(self) -> tuple[str, ...]:
        """Codes or values, as the tokenizer's tokens are; and the class token."""
        return ("values" if self.tokenizer.kind().num_codes is None else "codes", "class_token")

    def dimensions(self) -> tuple[int, int, int]:
        """(width, depth, heads) after the overrides."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads

    def check(self) -> None:
        """Raises ConfigError for an encoder that cannot be built."""
        check_ranges(vars(self), _RANGES, "backbone.")
        width, _, heads = self.dimensions()
        check_width("backbone.", width, heads)
        self.tokenizer.check()

    def block_flops(self, tokens: int, queries: int | None = None) -> float:
        """FLOPs of one block's forward for so many tokens of one image, of which queries ask."""
        width = self.dimensions()[0]
        return block_flops(tokens, width) if queries is None else last_block_flops(queries, tokens, width)

    def build(self, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]) -> TokenViT:
        """The encoder with fresh weights; mean and std are kept, and not used: tokenizers have their own."""
        return TokenViT(self, grid, in_chans, mean, std)


class TokenTable(nn.Embedding):
    """One row a code, and the product with them that tied heads end in: here, where ZeRO-3 has gathered the weight."""

    def forward(self, x: Tensor, num_codes: int | None = None, *, frozen: bool = False) -> Tensor:
        """Ids (...) int64 to rows (..., D); or, where num_codes is given, features (..., D) to the products with the
        first so many rows, (..., num_codes). frozen: no gradient reaches the rows."""
        if num_codes is None:
            return super().forward(x)
        weight = self.weight.detach() if frozen else self.weight
        return F.linear(x, weight[:num_codes])


class TokenViT(Backbone):
    """Encoder over any subset of an image's tokens."""

    def __init__(
        self, config: TokenViTConfig, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.config, kind = config, config.tokenizer.kind(in_chans)
        self.width, depth, heads = config.dimensions()
        self.grid, self.patch_size, self.in_chans = grid, kind.patch_size, in_chans
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_prefix, self.num_heads = config.num_prefix, heads
        self.classes, self.class_drop, self.dropout = config.classes, config.class_drop, config.dropout
        self.num_codes, self.num_values = kind.num_codes, kind.num_values
        self.post_norm, self.checkpointing = config.post_norm, False
        self.tokenizer = frozen_tokenizer(config.tokenizer, in_chans)  # no module: it is never trained, saved or cast
        # Rows: codes, then classes (one slot where there are none), then the unknown: a masked token, a dropped class.
        num_rows = (kind.num_codes or 0) + (config.classes or 1) + 1
        self.token_embed = TokenTable(num_rows, self.width)
        self.value_embed = nn.Linear(kind.num_values, self.width) if kind.num_codes is None else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix + grid.num_patches, self.width))
        self.norm_pre = nn.LayerNorm(self.width, eps=NORM_EPS)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TokenBlock(self.width, heads, post_norm=config.post_norm, dropout=config.dropout) for _ in range(depth)
        )
        self.norm = nn.Identity() if config.post_norm else nn.LayerNorm(self.width, eps=NORM_EPS)
        initialize(self)
        for table in (self.token_embed.weight, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    @property
    def cls_token(self) -> Tensor:
        """What the class token's features come from: evaluation asks whether there are any."""
        return self.token_embed.weight

    @property
    def mask_id(self) -> int:
        """The id of a hidden token, and the row of an unknown class: no code has it."""
        return self.token_embed.num_embeddings - 1

    def prefix_ids(self, labels: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """Rows of the prefix, (B,) int64: for labels (B,) from 0 to classes - 1, -1 where the class is not told;
        without classes the one slot there is. labels None: told of no image."""
        first = self.num_codes or 0
        if self.classes is None:
            return torch.full((batch,), first, device=device)
        if labels is None:
            return torch.full((batch,), self.mask_id, device=device)
        return torch.where(labels < 0, self.mask_id, labels + first)

    def embed(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) uint8 to the embeddings of their tokens, without positions: (B, N, D), or those of
        ids (B, L)."""
        tokens = self.embed_tokens(self.tokenizer.tokens(images))
        return tokens if ids is None else gather_rows(tokens, ids)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) int64, `mask_id` where hidden, or values (B, L, num_values) float32: (B, L, D)."""
        if self.value_embed is None:
            return self.token_embed(tokens)
        return self.value_embed(tokens.to(self.value_embed.weight.dtype))

    if TYPE_CHECKING:

        def __call__(
            self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), only_prefix: bool = False,
            prefix: Tensor | None = None, memory: KeyValues | None = None, alone: bool = False,
        ) -> Features: ...  # fmt: skip

    def forward(
        self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), only_prefix: bool = False,
        prefix: Tensor | None = None, memory: KeyValues | None = None, alone: bool = False,
    ) -> Features:  # fmt: skip
        """Embeddings (B, L, D) of positions ids (B, L), in any order (None: the whole grid), through all blocks and the
        last norm. prefix (B,) are `prefix_ids`; None: no class is told. memory says what is done with keys and values;
        alone leaves the prefix out, where it is remembered. layers asks for the sequence after those blocks, before the
        norm; only_prefix for the prefix alone."""
        table = self.pos_embed[0, self.num_prefix :]
        x = tokens + (table if ids is None else table[ids])
        if not alone:
            x = torch.cat([self._front(prefix, len(tokens)), x], dim=1)
        x = self.drop(self.norm_pre(x))
        wanted: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = run_block(block, x, memory, index, checkpointing=self.checkpointing)
            if index in layers:
                wanted[index] = x
        x = self.norm(x[:, : self.num_prefix] if only_prefix else x)
        return Features(x, 0 if alone else self.num_prefix, tuple(wanted[index] for index in layers))

    def _front(self, prefix: Tensor | None, batch: int) -> Tensor:
        """The prefix tokens with their positions, (B, F, D)."""
        if prefix is None:
            prefix = self.prefix_ids(None, batch, self.pos_embed.device)
        front = repeat(self.token_embed(prefix), "b d -> b f d", f=self.num_prefix)
        return front + self.pos_embed[:, : self.num_prefix]

    def slots(self, ids: Tensor, *, alone: bool = False) -> Tensor:
        """Where the prefix, unless alone, and positions ids (B, L) stand in a sequence of all: (B, F + L) int64."""
        if alone:
            return ids + self.num_prefix
        front = repeat(torch.arange(self.num_prefix, device=ids.device), "f -> b f", b=len(ids))
        return torch.cat([front, ids + self.num_prefix], dim=1)
