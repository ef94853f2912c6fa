"""iLLaMA: a plain vision transformer made of LLaMA's parts, with a causal mask that sets in during training (Wang et
al., "Adapting LLaMA Decoder to Vision Transformer", section 3).

Mode `paper` is what its authors train: attention weights are multiplied *after* the softmax, by 1 for tokens up to a
token's own and by alpha for later ones, and not normalised again. At alpha 1 that is ordinary attention. At 0 it is not
causal attention: a row sums to less than 1, and later tokens still count in its denominator. Mode `exact` is causal;
mode `prefix` is causal but for the first tokens of an image, which see each other (El-Nouby et al., "Scalable
Pre-training of Large Autoregressive Image Models", section 3.2); without a prefix given, nothing is masked. Mode
`bidirectional` has no mask. The mask has no weights: `init_from` may begin a classifier with those of another mode.

The class token goes behind the patches, where a mask lets it see them all, and so does its row of the positions.
`Features` has it in front, as every encoder's: it is moved there after the last norm, and in the features of layers.
Weights have the names that the authors publish; see illama_published.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from masking.attention.weighting import PLAIN, Weighting
from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.backbones.illama_layers import LlamaBlock, RMSNorm, initialize, swiglu_width
from pretrain.backbones.illama_mask import Layout, Mode, Place
from pretrain.backbones.layers import run_block
from pretrain.backbones.patch_embed import PatchEmbed
from pretrain.backbones.rotary import Rotary
from pretrain.backbones.sight import Sight
from pretrain.backbones.soft_mask import SoftMask
from pretrain.errors import ConfigError
from pretrain.ranges import AT_LEAST_1, BELOW_1, Range, check_ranges, check_width
from pretrain.types import Features

_SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
_RANGES: dict[str, Range] = {
    "patch_size": AT_LEAST_1,
    "drop_path": BELOW_1,
    "dropout": BELOW_1,
    "width": AT_LEAST_1,
    "depth": AT_LEAST_1,
    "heads": AT_LEAST_1,
}


@dataclass(frozen=True)
class IllamaConfig:
    """The encoder that is kept."""

    size: Literal["tiny", "small", "base", "large"] = "base"  # width, depth and heads of the published models
    patch_size: int = 16  # side of a patch, pixels
    mode: Mode = "paper"  # mask after the softmax, causal attention, AIM's prefix, or none
    soft_mask: SoftMask | None = field(default_factory=SoftMask)  # alpha over the run (mode paper); None: always 0
    # Behind the patches; or in front, where it sees nothing but itself, or all of them: the paper's ablations.
    class_token: Place = "last"  # place of the class token in the sequence
    unmasked_blocks: tuple[int, ...] | None = None  # blocks without a mask, counted from 0; None: all blocks have it
    drop_path: float = 0.0  # probability of dropping a residual branch in the last block, rising from 0 in the first
    dropout: float = 0.0  # of the tokens once positions are added
    width: int | None = None  # overrides the size's width
    depth: int | None = None  # overrides the size's number of blocks
    heads: int | None = None  # overrides the size's number of attention heads

    @property
    def num_prefix(self) -> int:
        """The class token."""
        return 1

    @property
    def has_class_token(self) -> bool:
        """Always."""
        return True

    @property
    def answers(self) -> tuple[str, ...]:
        """The class token; questions behind the patches need it behind them, and a prefix the mode of that name."""
        questions, prefix = self.class_token == "last", self.mode == "prefix"
        return ("class_token",) + ("questions",) * questions + ("prefix",) * prefix

    @property
    def layout(self) -> Layout:
        """The mask, and the place of the class token."""
        return Layout.of(self.mode, self.class_token, self.unmasked_blocks)

    def dimensions(self) -> tuple[int, int, int]:
        """(width, depth, heads) after the overrides."""
        width, depth, heads = _SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads

    def check(self) -> None:
        """Raises ConfigError for an encoder that cannot be built, and for settings without effect."""
        check_ranges(vars(self), _RANGES, "backbone.")
        width, depth, heads = self.dimensions()
        check_width("backbone.", width, heads)
        if width // heads % 2:
            raise ConfigError(f"backbone.heads={heads} makes heads of {width // heads} channels; positions turn pairs")
        blocks = self.unmasked_blocks
        if blocks is not None and (not blocks or len({*blocks}) < len(blocks) or not {*blocks} <= {*range(depth)}):
            raise ConfigError(
                f"backbone.unmasked_blocks={','.join(map(str, blocks))}; name some of the blocks 0 to {depth - 1}, "
                "each once, or set it to none"
            )
        if self.soft_mask is not None:
            self.soft_mask.check()
            if self.mode != "paper":
                raise ConfigError(
                    f"backbone.soft_mask has no effect in backbone.mode={self.mode}; set backbone.soft_mask=none"
                )
        seen = self.class_token == "first_seen"
        if self.mode == "bidirectional" and (blocks is not None or seen):
            raise ConfigError(
                f"backbone.{'class_token=first_seen' if seen else 'unmasked_blocks'} has no effect in backbone.mode="
                f"bidirectional; set {'backbone.class_token=first' if seen else 'backbone.unmasked_blocks=none'}"
            )
        if self.mode == "prefix" and self.class_token != "last":
            raise ConfigError(
                f"backbone.class_token={self.class_token} is an ablation of backbone.mode=paper and exact; "
                "backbone.mode=prefix needs backbone.class_token=last"
            )

    def block_flops(self, tokens: int, queries: int | None = None) -> float:
        """FLOPs of one block's forward for so many tokens of one image, of which queries ask; masked products are
        computed and counted."""
        width = self.dimensions()[0]
        asking = tokens if queries is None or self.class_token != "last" else queries
        projections = 4 * (tokens + asking) * width**2
        return projections + 4 * asking * tokens * width + 6 * asking * width * swiglu_width(width)

    def build(self, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]) -> Illama:
        """The encoder with fresh weights; mean and std are per channel, of pixel values in 0..1."""
        return Illama(self, grid, in_chans, mean, std)


class Illama(Backbone):
    """Encoder over any subset of an image's patches, each at its own place whatever is left out."""

    pos_embed: Tensor
    alpha: Tensor  # () float32, how much later tokens count; on the device, and in the state dict
    layout: Tensor  # (2 + depth,) int64, `Layout.numbers`; weights of another are refused

    if TYPE_CHECKING:

        def __call__(
            self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), num_queries: int = 0,
            prefix_lengths: Tensor | None = None, only_prefix: bool = False,
        ) -> Features: ...  # fmt: skip

    def __init__(
        self, config: IllamaConfig, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        self.width, depth, heads = config.dimensions()
        self.grid, self.patch_size, self.in_chans = grid, config.patch_size, in_chans
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_prefix = config.num_prefix
        self.checkpointing = False
        self.patch_embed = PatchEmbed(in_chans, config.patch_size, self.width, mean, std)
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.pos_embed = nn.Parameter(torch.empty(1, grid.num_patches + 1, self.width))
        self.pos_drop = nn.Dropout(config.dropout)
        self.rotary = Rotary(self.width // heads, grid.num_patches + 1)
        rates = [config.drop_path * index / max(depth - 1, 1) for index in range(depth)]
        hidden = swiglu_width(self.width)
        self.blocks = nn.ModuleList(LlamaBlock(self.width, heads, hidden, rate) for rate in rates)
        self.norm = RMSNorm(self.width)
        self.register_buffer("alpha", torch.tensor(0.0 if config.soft_mask is None else config.soft_mask.initial))
        self.register_buffer("layout", torch.tensor(config.layout.numbers(depth)))
        initialize(self, self.pos_embed, self.cls_token, convolution=self.patch_embed.proj)

    def embed(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), uint8 or floats already normalised, to tokens without positions: (B, N, D), or (B, L, D)
        for the patches ids (B, L) alone, whose pixels are all that is read."""
        return self.patch_embed(images, ids)

    def forward(
        self,
        tokens: Tensor,
        ids: Tensor | None = None,
        *,
        layers: Sequence[int] = (),
        num_queries: int = 0,
        prefix_lengths: Tensor | None = None,
        only_prefix: bool = False,
    ) -> Features:
        """Tokens (B, L, D) of patches ids (B, L), ascending (None: the whole grid), through all blocks and the last
        norm. layers asks for the sequence after those blocks, before any norm.

        The last num_queries tokens are questions: each sees the tokens before them and itself, and nobody sees it.
        prefix_lengths (B,) int, mode prefix only: so many first tokens of an image see each other.
        only_prefix: nobody asks for patches, and those of the last block are not computed where the class token is
        last, for then it sees all of them whatever the mask."""
        x, turns = self._sequence(tokens, ids)
        x = self.pos_drop(x)
        masked, unmasked = self._sights(x, num_queries, prefix_lengths)
        bare = self.config.unmasked_blocks or ()
        wanted: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            sight: Sight | None = unmasked if index in bare else masked
            if only_prefix and block is self.blocks[-1] and self.config.class_token == "last":
                assert not num_queries and index not in layers
                sight = None
            x = run_block(block, x, turns, sight, checkpointing=self.checkpointing)
            if index in layers:
                wanted[index] = self._class_token_first(x)
        if only_prefix:
            x = x[:, -1:] if self.config.class_token == "last" else x[:, :1]
        return Features(self._class_token_first(self.norm(x)), 1, tuple(wanted[index] for index in layers))

    def no_weight_decay(self) -> set[str]:
        """Positions and class token; one-dimensional parameters are the optimizer's to find."""
        return {"pos_embed", "cls_token"}

    def moving(self) -> set[str]:
        """alpha, where a schedule moves it."""
        return {"alpha"} if self.config.soft_mask is not None else set()

    def at_step(self, step: int, total_steps: int, steps_per_epoch: float) -> dict[str, float]:
        """Sets alpha as the schedule has it for step."""
        if self.config.soft_mask is None:
            return {}
        alpha = self.config.soft_mask.alpha(step, total_steps, steps_per_epoch)
        self.alpha.fill_(alpha)
        return {"alpha": alpha}

    def _sequence(self, tokens: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """tokens with positions and the class token, (B, L + 1, D), and the turns of their places, (B or 1, L + 1,
        E / 2, 2)."""
        batch, last = tokens.shape[0], self.config.class_token == "last"
        patches = slice(0, -1) if last else slice(1, None)
        table, own = self.pos_embed[0, patches], self.pos_embed[:, -1:] if last else self.pos_embed[:, :1]
        tokens = tokens + (table if ids is None else table[ids])
        token = (self.cls_token + own).expand(batch, -1, -1).to(tokens.dtype)
        x = torch.cat([tokens, token] if last else [token, tokens], dim=1)
        if ids is None:
            return x, self.rotary()
        places = ids if last else ids + 1
        its = ids.new_full((batch, 1), self.grid.num_patches if last else 0)
        return x, self.rotary(torch.cat([places, its] if last else [its, places], dim=1))

    def _sights(self, x: Tensor, num_queries: int, prefix_lengths: Tensor | None) -> tuple[Sight, Sight]:
        """Who sees whom among x (B, L + 1, D) in masked blocks, and in those without a mask."""
        assert prefix_lengths is None or (self.config.mode == "prefix" and not num_queries)
        weighting = self._queried(x, num_queries) if num_queries else PLAIN
        if self.config.mode == "bidirectional" or (self.config.mode == "prefix" and prefix_lengths is None):
            return Sight(weighting), Sight(weighting)
        paper = self.config.mode == "paper"
        if paper and self.alpha.is_cpu and not torch.compiler.is_compiling() and self.alpha == 1:
            return Sight(weighting), Sight(weighting)  # torch's attention without a gate is the faster one
        rule = replace(weighting, alpha=self.alpha) if paper else replace(weighting, causal=True)
        return Sight(rule, self.config.class_token == "first_seen", prefix_lengths), Sight(weighting)

    def _queried(self, x: Tensor, num_queries: int) -> Weighting:
        """What all blocks hold to where the last tokens before the class token of x are questions."""
        assert self.config.class_token == "last"
        classes = x.new_zeros(x.shape[:2], dtype=torch.int8)
        classes[:, -1 - num_queries : -1] = 1
        classes[:, -1] = 2
        before = x.new_ones(3, 3, dtype=torch.float32)
        before[:, 1] = 0  # nobody sees a question,
        before[1, 2] = 0  # and none sees the class token, which stands behind all of them
        return Weighting(query_classes=classes, key_classes=classes, before=before, see_self=True)

    def _class_token_first(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, -1:], x[:, :-1]], dim=1) if self.config.class_token == "last" else x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Illama:
        """As any module, but alpha keeps its 32 bits when weights are cast."""
        alpha = self.alpha
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not alpha.is_meta:
            self.alpha = alpha.to(self.alpha.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        found, errors = state_dict.get(f"{prefix}layout"), rest[-1]
        if found is not None and (theirs := Layout.read(found.tolist())) != self.config.layout:
            errors.append(f"the weights are of {theirs}, and backbone is {self.config.layout}; set what they are of")
        super()._load_from_state_dict(state_dict, prefix, *rest)
