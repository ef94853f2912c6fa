"""The vision transformer, with timm's names for every weight (`timm.models.vision_transformer.VisionTransformer`).

As there, positions have an entry for the class token, unless registers are used: then they cover patches only (timm's
`no_embed_class`, the convention of its `reg` models). Letters: B images, N patches, L tokens given, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import block_flops, last_block_flops
from pretrain.backbones.layers import NORM_EPS, Block, initialize, run_block, sincos_positions
from pretrain.backbones.patch_embed import PatchEmbed
from pretrain.backbones.treatment import Treatment
from pretrain.ranges import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, Range, check_ranges, check_width
from pretrain.types import Features

SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}

_RANGES: dict[str, Range] = {
    "patch_size": AT_LEAST_1,
    "registers": AT_LEAST_0,
    "layer_scale": POSITIVE,
    "drop_path": BELOW_1,
    "width": AT_LEAST_1,
    "depth": AT_LEAST_1,
    "heads": AT_LEAST_1,
}


@dataclass(frozen=True)
class ViTConfig:
    """The encoder that is kept."""

    size: Literal["tiny", "small", "base", "large", "huge"] = "base"  # width, depth and heads of the published models
    patch_size: int = 16  # side of a patch, pixels
    class_token: bool = True  # a learned token in front of the patches
    registers: int = 0  # further learned tokens that belong to no patch
    positions: Literal["sincos", "learned"] = "sincos"  # fixed sines and cosines as in MAE, or a trained table
    layer_scale: float | None = None  # start of the learned factor of each residual branch; None: no such factor
    drop_path: float = 0.0  # probability of dropping a residual branch in the last block, rising from 0 in the first
    width: int | None = None  # overrides the size's width
    depth: int | None = None  # overrides the size's number of blocks
    heads: int | None = None  # overrides the size's number of attention heads

    @property
    def num_prefix(self) -> int:
        """Class token and registers."""
        return int(self.class_token) + self.registers

    @property
    def has_class_token(self) -> bool:
        """Whether the first of the prefix tokens is a class token."""
        return self.class_token

    @property
    def answers(self) -> tuple[str, ...]:
        """MTO-R's treatment always; the class token where there is one."""
        return ("treatment",) + ("class_token",) * self.class_token

    def dimensions(self) -> tuple[int, int, int]:
        """(width, depth, heads) after the overrides."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads

    def check(self) -> None:
        """Raises ConfigError for an encoder that cannot be built."""
        check_ranges(vars(self), _RANGES, "backbone.")
        width, _, heads = self.dimensions()
        check_width("backbone.", width, heads)

    def block_flops(self, tokens: int, queries: int | None = None) -> float:
        """FLOPs of one block's forward for so many tokens of one image, of which queries ask."""
        width = self.dimensions()[0]
        return block_flops(tokens, width) if queries is None else last_block_flops(queries, tokens, width)

    def build(self, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]) -> ViT:
        """The encoder with fresh weights; mean and std are per channel, of pixel values in 0..1."""
        return ViT(self, grid, in_chans, mean, std)


class ViT(Backbone):
    """Encoder over any subset of an image's patches."""

    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    pos_embed: Tensor

    if TYPE_CHECKING:

        def __call__(
            self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), only_prefix: bool = False,
            treatment: Treatment | None = None,
        ) -> Features: ...  # fmt: skip

    def __init__(
        self, config: ViTConfig, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.width, depth, heads = config.dimensions()
        self.grid, self.patch_size, self.in_chans = grid, config.patch_size, in_chans
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_prefix = config.num_prefix
        self.checkpointing = False
        self.patch_embed = PatchEmbed(in_chans, config.patch_size, self.width, mean, std)
        self.cls_token = _tokens(1, self.width) if config.class_token else None
        self.reg_token = _tokens(config.registers, self.width) if config.registers else None
        self._set_positions(config)
        rates = [config.drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(self.width, heads, config.layer_scale, rate) for rate in rates)
        self.norm = nn.LayerNorm(self.width, eps=NORM_EPS)
        initialize(self)

    def embed(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), uint8 or floats already normalised, to tokens without positions: (B, N, D), or (B, L, D)
        for the patches ids (B, L) alone, whose pixels are all that is read."""
        return self.patch_embed(images, ids)

    def forward(
        self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), only_prefix: bool = False,
        treatment: Treatment | None = None,
    ) -> Features:  # fmt: skip
        """Tokens (B, L, D) of patches ids (B, L), in any order (None: the whole grid), through all blocks and the last
        norm. layers asks for the sequence after those blocks, before any norm. only_prefix: nobody asks for patches,
        and those of the last block are not computed. treatment is what MTO-R does in the blocks."""
        assert not only_prefix or (self.num_prefix and len(self.blocks) - 1 not in layers and treatment is None)
        x = self._with_prefix(tokens, ids)
        wanted: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            if treatment is not None:
                x = treatment.run(block, x, checkpointing=self.checkpointing)
            elif only_prefix and block is self.blocks[-1]:  # a block's last rows ask; none of it minds their order
                x = torch.cat([x[:, self.num_prefix :], x[:, : self.num_prefix]], dim=1)
                x = run_block(block, x, self.num_prefix, checkpointing=self.checkpointing)
                break
            else:
                x = run_block(block, x, checkpointing=self.checkpointing)
            if index in layers:
                wanted[index] = x
        return Features(self.norm(x), self.num_prefix, tuple(wanted[index] for index in layers))

    def no_weight_decay(self) -> set[str]:
        """Positions and tokens; one-dimensional parameters are the optimizer's to find."""
        return {"pos_embed", "cls_token", "reg_token"} & {name for name, _ in self.named_parameters()}

    def _set_positions(self, config: ViTConfig) -> None:
        # A fixed table is a buffer: in the state dict as timm expects it, unknown to the optimizer.
        slots = 0 if config.registers else self.num_prefix
        if config.positions == "sincos":
            self.register_buffer("pos_embed", sincos_positions(self.grid, self.width, slots))
        else:
            self.pos_embed = _tokens(slots + self.grid.num_patches, self.width)

    def _with_prefix(self, tokens: Tensor, ids: Tensor | None) -> Tensor:
        """Adds to each token its position and puts class token and registers in front: (B, num_prefix + L, D)."""
        slots = self.pos_embed.shape[1] - self.grid.num_patches
        table = self.pos_embed[0, slots:]
        tokens = tokens + (table if ids is None else table[ids])
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if not prefix:
            return tokens
        front = torch.cat(prefix, dim=1)
        if slots:
            front = front + self.pos_embed[:, :slots]
        return torch.cat([front.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)


def _tokens(num: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, num, width).normal_(std=0.02))
