"""How much of attention's freedom is used, block by block, and whether tokens collapse into one another.

The rank of a map is the number of singular values, largest first, that make up 0.8 of their sum (Wang et al., "Adapting
LLaMA Decoder to Vision Transformer", section 4). A mask moves it whatever the encoder has learnt: uniform attention has
rank 1, and cut to its lower triangle 56 of 197. So a figure means nothing without its baselines: uniform attention
under the block's own mask stands beside each. Letters: B images, L tokens, N patches, H heads, D width."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.backbones.base import Backbone
from pretrain.errors import DataError, NumericalError
from pretrain.evaluation.attention_maps import Inputs, attention_map, on_attention
from pretrain.evaluation.features import evaluating
from pretrain.evaluation.rank import effective_rank

SHARE = 0.8
_ROUNDING = 1e-6  # of float32: that many equal values out of 5 reach 0.8 with the 4th


def rank_of(maps: Tensor) -> Tensor:
    """How many singular values, largest first, reach 0.8 of the sum of all: maps (..., L, L) to (...) int64, 1 to L."""
    values = torch.linalg.svdvals(maps).double()
    below = values.cumsum(-1) < (SHARE - _ROUNDING) * values.sum(-1, keepdim=True)
    return below.sum(-1) + 1


def baselines(length: int) -> dict[str, int]:
    """Ranks of maps that no encoder has learnt anything for, by name, for sequences of length tokens."""
    uniform = torch.ones(length, length)
    named = {"identity": torch.eye(length), "uniform lower triangle": uniform.tril(), "uniform": uniform}
    return {name: int(rank_of(fixed)) for name, fixed in named.items()}


@torch.no_grad()
def attention_rank(
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Any]],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Maps and last features of every image of batches, pairs of images (B, C, H, W) uint8 and anything, as JSON.

    `blocks` holds for each block `rank` by head and `row_mass`, the mean sum of a row and its least over the sequence's
    places, means over the images; `mask_rank` and `mask_row_mass` are those of uniform attention under the block's
    mask. `token_variance` is the share of the patch tokens' variance that lies between tokens of one image,
    `token_similarity` their mean cosine, 1 where all are alike, `effective_rank` of 1 to D that of all together.

    Images are shown whole, in float32, without dropout; all maps of one batch and block are held at a time. Raises
    DataError where there is no image, NumericalError where a map is not finite."""
    maps = [_Maps() for _ in backbone.blocks]
    tokens = []
    with evaluating(backbone), on_attention(backbone, lambda index, *asked: maps[index].see(index, *asked)):
        for images, _ in batches:
            tokens.append(backbone(backbone.embed(images.to(device))).tokens.float().cpu())
            if on_progress is not None:
                on_progress(len(images))
    if not tokens:
        raise DataError("there is no image that could be used to take maps of attention from")
    length = maps[0].mask.shape[-1]
    facts = {"images": sum(map(len, tokens)), "length": length, "share": SHARE, "baselines": baselines(length)}
    return {**facts, "blocks": [seen.figures() for seen in maps], **token_collapse(torch.cat(tokens))}


def token_collapse(tokens: Tensor) -> dict[str, float]:
    """Figures of patch tokens (B, N, D) that tell of a collapse, as `attention_rank` names them; the share of a
    variance of 0 is 0."""
    tokens = tokens.double()
    within = (tokens - tokens.mean(1, keepdim=True)).square().sum()
    total = (tokens - tokens.mean((0, 1))).square().sum()
    num, unit = tokens.shape[1], F.normalize(tokens, dim=-1)
    pairs = (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / max(num * (num - 1), 1)
    return {
        "token_variance": float(within / total) if total > 0 else 0.0,
        "token_similarity": float(pairs.mean()),
        "effective_rank": effective_rank(tokens.flatten(0, 1)),
    }


class _Maps:
    """What is kept of one block's maps."""

    mask: Tensor  # (L, L), what the mask makes of uniform attention

    def __init__(self) -> None:
        self._ranks: list[Tensor] = []  # (B, H) each
        self._rows: list[Tensor] = []  # (B, L) each, a row's sum

    def see(self, index: int, module: nn.Module, inputs: Inputs) -> None:
        maps = attention_map(module, inputs).float().cpu()
        if not bool(torch.isfinite(maps).all()):
            raise NumericalError(
                f"attention of block {index} is not finite: the weights of this checkpoint are of no use"
            )
        if not self._ranks:
            self.mask = attention_map(module, inputs, blank=True)[0, 0].float().cpu()
        self._ranks.append(rank_of(maps))
        self._rows.append(maps.sum(-1).mean(1))

    def figures(self) -> dict[str, Any]:
        rows = torch.cat(self._rows)
        return {
            "rank": torch.cat(self._ranks).double().mean(0).tolist(),
            "mask_rank": int(rank_of(self.mask)),
            "row_mass": float(rows.mean()),
            "row_mass_least": float(rows.mean(0).min()),
            "mask_row_mass": float(self.mask.sum(-1).mean()),
        }
