"""Fewer tokens at inference, without training: after some blocks only those patches stay that are attended to most, and
the others are dropped or merged into a few (VisionDrop, Xu et al., "Rethinking Visual Token Reduction in LVLMs under
Cross-modal Misalignment", section 3). No text and no label is used.

An encoder need not know of it: hooks shorten the sequence between its blocks. Letters: B images, L tokens, N patches at
hand, K kept, H heads, D width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from masking.rng import generator
from pretrain.backbones.base import Backbone
from pretrain.backbones.illama import Illama
from pretrain.errors import ConfigError
from pretrain.evaluation.attention_maps import attention_map, on_attention
from pretrain.types import Features

By = Literal["attention", "class", "random"]
_NOTHING = torch.empty(0)  # before the first forward


@dataclass(frozen=True)
class Stage:
    """A shortening of the sequence."""

    after: int  # block, from 0
    keep: float  # share of the patch tokens at hand that stays: lambda
    contextual: int = 0  # tokens that the others are merged into; 0: they are dropped

    def num_kept(self, num: int) -> int:
        """How many of num patch tokens stay, merged ones not counted."""
        return max(1, round(self.keep * num))

    def num_left(self, num: int) -> int:
        """How many patch tokens num become."""
        kept = self.num_kept(num)
        return kept + min(self.contextual, num - kept)


@dataclass
class Reduction:
    """What is reduced, and what the latest forward left of its patches; prefix tokens always stay."""

    stages: tuple[Stage, ...]
    by: By
    rng: torch.Generator
    sizes: Tensor = _NOTHING  # (B, K) float32: how many patches a token is the mean of
    ids: Tensor = _NOTHING  # (B, K) int64, ascending: whose place in the sequence that was given it has
    scores: Tensor = _NOTHING  # (B, N) float32, of the block that ran last before a stage
    keys: Tensor = _NOTHING  # (B, N, D), likewise, before positions turn them

    def mean(self, features: Features) -> Tensor:
        """(B, D): the mean of the patches that the tokens of features stand for."""
        weights = self.sizes / self.sizes.sum(1, keepdim=True)
        return torch.einsum("bk,bkd->bd", weights.to(features.tokens.dtype), features.tokens)


@contextmanager
def reducing(backbone: Backbone, stages: Sequence[Stage], by: By = "attention", seed: int = 0) -> Iterator[Reduction]:
    """Within it, backbone's forwards reduce their tokens as stages say, and the reduction says how. by: the attention
    that a patch gets from patches, or from the class token, or chance, drawn from seed.

    Raises ConfigError for stages or scores that backbone has not."""
    _check(backbone, stages, by)
    reduction = Reduction(tuple(stages), by, generator(seed, "token reduction"))
    with ExitStack() as hooks:
        for index, block in enumerate(backbone.blocks):
            before = partial(_begin, reduction, backbone) if index == 0 else partial(_place, reduction, backbone)
            hooks.callback(block.register_forward_pre_hook(before).remove)
            for number, stage in enumerate(reduction.stages):
                if stage.after == index:
                    after = partial(_reduce, reduction, backbone, number)
                    hooks.callback(block.register_forward_hook(after).remove)
        hooks.enter_context(on_attention(backbone, partial(_look, reduction, backbone)))
        yield reduction


def scores_of(attention: nn.Module, inputs: tuple[Any, ...], patches: slice, by: By) -> Tensor:
    """What each patch is given by one attention module, (B, N) float32, mean over heads: by all patches, over how many
    of them can see it at all, for a causal mask shows the last patch to nobody else; or by the class token."""
    given = attention_map(attention, inputs).float().mean(1)
    if by == "class":
        return given[:, _class_row(patches), patches]
    seen = attention_map(attention, inputs, blank=True)[0].mean(0)[patches, patches] > 0
    return given[:, patches, patches].sum(1) / seen.sum(0)


def reduce_tokens(
    x: Tensor, sizes: Tensor, scores: Tensor, keys: Tensor, num_kept: int, num_contextual: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The num_kept tokens of x (B, N, D) with the largest scores (B, N), the earlier of equal ones first, and
    num_contextual that are means, by sizes (B, N), of the others: every one of those goes to the reference, of evenly
    spaced ones among them, whose key has the largest product with its own; keys (B, N, D).

    Tokens (B, K, D), their sizes (B, K), and the places (B, K) in x that they have, ascending."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places, rest = order[:, :num_kept], order[:, num_kept:].sort(1).values
    if num_contextual:
        num = rest.shape[1]
        is_reference = torch.zeros(num, dtype=torch.bool, device=x.device)
        is_reference[torch.arange(num_contextual, device=x.device) * num // num_contextual] = True
        references, others = rest[:, is_reference], rest[:, ~is_reference]
        closest = (_rows(keys, others) @ _rows(keys, references).mT).argmax(2)
        nearest = references.gather(1, closest)
        weighted = x * sizes[..., None].to(x.dtype)
        weighted = weighted.scatter_add(1, _like(nearest, x), _rows(weighted, others))
        merged = sizes.scatter_add(1, nearest, sizes.gather(1, others))
        is_merged = torch.zeros_like(merged, dtype=torch.bool).scatter(1, references, True)
        x = torch.where(is_merged[..., None], weighted / merged[..., None].to(x.dtype), x)
        sizes, places = merged, torch.cat([places, references], dim=1)
    places = places.sort(1).values
    return _rows(x, places), sizes.gather(1, places), places


def _begin(reduction: Reduction, backbone: Backbone, block: nn.Module, inputs: tuple[Any, ...]) -> None:
    batch, num = inputs[0].shape[0], inputs[0].shape[1] - backbone.num_prefix
    device = inputs[0].device
    reduction.ids = torch.arange(num, device=device).expand(batch, -1)
    reduction.sizes = torch.ones(batch, num, device=device)


def _place(reduction: Reduction, backbone: Backbone, block: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """iLLaMA's blocks are told the turns of all tokens that there were: those of tokens that are left, here."""
    if not isinstance(backbone, Illama) or reduction.ids.shape[1] == inputs[1].shape[1] - 1:
        return None
    x, turns, sight = inputs
    table = turns.expand(len(x), -1, -1, -1)
    patches = _patches(backbone, turns.shape[1])
    own = table[:, _class_row(patches)][:, None]
    places = rearrange(reduction.ids, "b k -> b k 1 1").expand(-1, -1, *table.shape[2:])
    return x, _joined(backbone, table[:, patches].gather(1, places), own), sight


def _look(reduction: Reduction, backbone: Backbone, index: int, attention: Any, inputs: tuple[Any, ...]) -> None:
    if all(stage.after != index for stage in reduction.stages):
        return
    x = inputs[0]
    patches = _patches(backbone, x.shape[1])
    reduction.keys = attention.qkv(x[:, patches], 1, 2)
    if reduction.by == "random":
        shape = x.shape[0], reduction.ids.shape[1]
        reduction.scores = torch.rand(shape, generator=reduction.rng).to(x.device)
    else:
        reduction.scores = scores_of(attention, inputs, patches, reduction.by)


def _reduce(reduction: Reduction, backbone: Backbone, number: int, block: nn.Module, inputs: Any, x: Tensor) -> Any:
    stage, num = reduction.stages[number], reduction.ids.shape[1]
    kept = stage.num_kept(num)
    if kept == num:
        return None
    patches = _patches(backbone, x.shape[1])
    prefix = x[:, : patches.start] if patches.start else x[:, patches.stop :]
    contextual = min(stage.contextual, num - kept)
    tokens, reduction.sizes, places = reduce_tokens(
        x[:, patches], reduction.sizes, reduction.scores, reduction.keys, kept, contextual
    )
    reduction.ids = reduction.ids.gather(1, places)
    return _joined(backbone, tokens, prefix)


def _check(backbone: Backbone, stages: Sequence[Stage], by: str) -> None:
    depth, after = len(backbone.blocks), [stage.after for stage in stages]
    if by not in get_args(By):
        raise ConfigError(f"by={by}; tokens are chosen by {', '.join(get_args(By))}")
    if by == "class" and getattr(backbone, "cls_token", None) is None:
        raise ConfigError("by=class needs a class token, and this encoder has none; use by=attention")
    if after != sorted(set(after)) or any(not 0 <= index < depth for index in after):
        raise ConfigError(f"stages come after blocks {after}; give ascending ones from 0 to {depth - 1}")
    for stage in stages:
        if not 0 < stage.keep <= 1 or stage.contextual < 0:
            raise ConfigError(f"{stage}: keep must be above 0 and at most 1, and contextual 0 or more")


def _patches(backbone: Backbone, num_tokens: int) -> slice:
    """Where the patches are in an encoder's own sequence."""
    if isinstance(backbone, Illama) and backbone.config.class_token == "last":
        return slice(0, num_tokens - 1)
    return slice(backbone.num_prefix, num_tokens)


def _class_row(patches: slice) -> int:
    return 0 if patches.start else -1


def _joined(backbone: Backbone, patches: Tensor, prefix: Tensor) -> Tensor:
    """Patches and prefix in the encoder's own order."""
    is_last = isinstance(backbone, Illama) and backbone.config.class_token == "last"
    return torch.cat([patches, prefix] if is_last else [prefix, patches], dim=1)


def _like(places: Tensor, x: Tensor) -> Tensor:
    return places[..., None].expand(-1, -1, x.shape[2])


def _rows(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, _like(places, x))
