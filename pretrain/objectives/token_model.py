"""What MaskGIT, MAGE and MAR have in common: a model of hidden tokens that is trained on images, and later asked, step
by step, what belongs on a canvas that is partly known. Letters: B images, N positions, n of them asked, K codes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from masking.mask import Grid
from masking.recap import KeyValues
from pretrain.backbones.base import Backbone
from pretrain.backbones.layers import NORM_EPS
from pretrain.objectives.base import Objective
from pretrain.tokenizers.token_vit import TokenTable, TokenViT
from pretrain.types import Labels, Target


@dataclass
class Canvas:
    """Images in the making, as tokens; every image has the same number of known ones."""

    tokens: Tensor  # (B, N) int64 ids, the mask's where not known; or (B, N, num_values) float32
    known: Tensor  # (B, N) bool
    prefix: Tensor  # (B,) int64, rows of the prefix tokens: `TokenViT.prefix_ids`


@dataclass
class Memory:
    """What a full pass leaves for the local passes behind it."""

    encoder: KeyValues = field(default_factory=KeyValues)
    decoder: KeyValues = field(default_factory=KeyValues)
    num_context: int = 0  # prefix and known tokens that the encoder saw, where it sees no others
    keeps_prefix: bool = False  # local passes see the prefix as the full one left it, and do not ask it again: MAR


class TokenModel(Objective):
    """An objective that can be asked about a canvas."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        assert isinstance(backbone, TokenViT)  # checks.py
        self.tokenizer = backbone.tokenizer

    def look(self, backbone: TokenViT, canvas: Canvas, memory: Memory | None, num_targets: int = 0) -> Tensor:
        """A full pass: what belongs on each position, (B, N, K) float32 logits, or (B, N, D) conditions of a diffusion
        head. A memory keeps keys and values for groups of num_targets positions."""
        raise NotImplementedError

    def look_again(
        self, backbone: TokenViT, canvas: Canvas, memory: Memory, targets: Tensor, num_filled: int
    ) -> Tensor:
        """A local pass over targets (B, n) int64, of which the first so many were filled since the full one: (B, n, K)
        or (B, n, D)."""
        raise NotImplementedError

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """Tokens of images (B, C, H, W) uint8: (B, N) int64 ids or (B, N, num_values) float32."""
        return Target(value=self.tokenizer.tokens(images), labels=labels)


class TokenHead(nn.Module):
    """MaskGIT's head: a layer of its own, then the product with the embedding table (Chang et al., section 3.1)."""

    def __init__(self, width: int, num_rows: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(num_rows))

    def forward(self, x: Tensor, table: TokenTable, num_codes: int, *, frozen: bool = False) -> Tensor:
        """Features (..., D) to logits of the codes alone, (..., K) float32. frozen: table gets no gradient."""
        products: Tensor = table(self.norm(self.act(self.dense(x))), num_codes, frozen=frozen)
        return products.float() + self.bias[:num_codes].float()


def head_flops(num_tokens: int, width: int, num_codes: int) -> float:
    """FLOPs of a `TokenHead` for so many tokens."""
    return 2 * num_tokens * width * (width + num_codes)


def token_losses(logits: Tensor, ids: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, N, K) float32 with ids (B, N), each target giving a share to all codes alike: (B, N)
    float32."""
    log_probs = logits.log_softmax(-1)
    true = log_probs.gather(-1, ids[..., None])[..., 0]
    return -(1 - smoothing) * true - smoothing * log_probs.mean(-1)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of values (B, N) over the positions chosen (B, N) bool of each image, 0 where there is none: (B,)."""
    chosen = chosen.to(values.dtype)
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def drawn(rng: torch.Generator | Tensor | None, batch: int, num: int, device: torch.device) -> Tensor:
    """(B, num) uniform numbers: rng where it is them already, else from that generator, or from torch's own."""
    return rng if isinstance(rng, Tensor) else torch.rand(batch, num, generator=rng, device=device)


def told(backbone: TokenViT, target: Target, numbers: Tensor) -> Tensor:
    """Rows of the prefix, (B,), for the labels of target, where numbers (B,) in [0, 1) do not drop the class."""
    return backbone.prefix_ids(told_labels(backbone, target, numbers), len(numbers), numbers.device)


def told_labels(backbone: TokenViT, target: Target, numbers: Tensor) -> Tensor | None:
    """The labels of target, (B,), -1 where numbers (B,) in [0, 1) drop the class; None where there are none."""
    labels = None if target.labels is None else target.labels.first
    if labels is not None and backbone.class_drop:
        labels = torch.where(numbers < backbone.class_drop, -1, labels)
    return labels


def replaced(ids: Tensor, visible: Tensor, ratio: float, numbers: Tensor, num_codes: int) -> Tensor:
    """ids (B, N) with a share ratio of those visible (B, N) bool changed to codes drawn alike, by numbers (B, 2 * N):
    what a sampler's own mistakes look like (Xu et al., "MDiff4STR", token-replacement noise)."""
    choose, code = numbers.chunk(2, dim=1)
    other = (code * num_codes).long().clamp(max=num_codes - 1)
    return torch.where(visible & (choose < ratio), other, ids)


def num_replace_draws(ratio: float, grid: Grid) -> int:
    """How many numbers of each image `replaced` uses."""
    return 2 * grid.num_patches if ratio else 0
