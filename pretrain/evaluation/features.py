"""Frozen features: one vector an image, from an encoder that is only read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError

Pool = Literal["mean", "cls"]
Gather = Callable[[Tensor], Tensor]  # (n_rank, ...) of this rank -> (n, ...) of all ranks, in the order of the dataset


@dataclass(frozen=True)
class Extracted:
    """The features of one split, in the order of the dataset."""

    features: Tensor  # (n, D) float32, on the CPU
    labels: Tensor  # (n,) int64, -1 where the image has no label
    num_bad: int  # images that could not be used; they have no row

    @property
    def labelled(self) -> Extracted:
        """The rows that have a label."""
        kept = self.labels >= 0
        return Extracted(self.features[kept], self.labels[kept], self.num_bad)


def extract(
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Tensor]],
    pool: Pool = "mean",
    layer: int = -1,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    gather: Gather | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Extracted:
    """Features of every image of batches: pairs of images (B, C, H, W) uint8 and labels (B,) int64, -1 for none; images
    that could not be used are not among them but in `batches.bad`, where it has that. The whole image is shown, without
    dropout, in float32 or bfloat16.

    Under several ranks each hands in its own batches, image i of the dataset being on rank i mod world, and `gather`
    puts the rows together again. The modes of backbone's modules are put back afterwards; its weights are only read.
    """
    check_pool(backbone, pool, layer)

    def pooled(images: Tensor) -> Tensor:
        return _pooled(backbone, images, pool, layer)

    with evaluating(backbone):
        return read(pooled, backbone.width, batches, device, dtype=dtype, gather=gather, on_progress=on_progress)


@torch.no_grad()
def read(
    row: Callable[[Tensor], Tensor],
    width: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    *,
    dtype: torch.dtype,
    gather: Gather | None,
    on_progress: Callable[[int], None] | None,
) -> Extracted:
    """What row makes of the images (B, C, H, W) uint8 of each of batches: (B, width) floats; the rest as `extract`."""
    rows, labels = [torch.zeros(0, width)], [torch.zeros(0, dtype=torch.int64)]
    device = torch.device(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for images, batch_labels in batches:
            rows.append(row(images.to(device, non_blocking=True)).float().cpu())
            labels.append(batch_labels.to("cpu", torch.int64))
            if on_progress is not None:
                on_progress(len(images))
    found = torch.cat(rows), torch.cat(labels), torch.tensor([len(getattr(batches, "bad", ()))])
    if gather is not None:
        found = gather(found[0]), gather(found[1]), gather(found[2])
    return Extracted(found[0], found[1], int(found[2].sum()))


def check_pool(backbone: Backbone, pool: str, layer: int) -> None:
    """Raises ConfigError where backbone has no such pooling or block."""
    depth = len(backbone.blocks)
    if pool not in ("mean", "cls"):
        raise ConfigError(f"pool={pool!r}; use mean (of the patch tokens) or cls (the class token)")
    if pool == "cls" and getattr(backbone, "cls_token", None) is None:
        raise ConfigError("pool=cls needs a class token and this encoder has none; use pool=mean")
    if not -1 <= layer < depth:
        raise ConfigError(f"layer={layer}; this encoder's blocks are 0 to {depth - 1}, or -1 for the last")


def interleave(rank: int, world: int, all_reduce: Callable[[Tensor], Tensor]) -> Gather:
    """A `gather` made of one collective: all_reduce(int64 CPU tensor) gives its sum over all ranks. The ranks take
    turns, a row each, and one that has no more is passed over; every bit arrives as it was."""

    def gather(rows: Tensor) -> Tensor:
        counts = torch.zeros(world, dtype=torch.int64)
        counts[rank] = len(rows)
        counts = all_reduce(counts)
        turn = torch.arange(len(rows))[:, None]
        places = torch.minimum(counts, turn).sum(1) + (counts[:rank] > turn).sum(1)
        bits = rows.contiguous().view(torch.int32).to(torch.int64) if rows.dtype == torch.float32 else rows
        placed = torch.zeros(int(counts.sum()), *rows.shape[1:], dtype=torch.int64)
        placed[places] = bits
        placed = all_reduce(placed)
        return placed.to(torch.int32).view(torch.float32) if rows.dtype == torch.float32 else placed

    return gather


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it, module is in eval mode; afterwards each of its parts is in the mode it was in."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def _pooled(backbone: Backbone, images: Tensor, pool: str, layer: int) -> Tensor:
    """(B, D)."""
    ids = torch.arange(backbone.grid.num_patches, device=images.device).expand(len(images), -1)
    tokens = backbone.embed(images)
    last = layer in (-1, len(backbone.blocks) - 1)
    features = backbone(tokens, ids, layers=() if last else (layer,))
    sequence = features.sequence if last else backbone.norm(features.layers[0])
    return sequence[:, 0] if pool == "cls" else sequence[:, features.num_prefix :].mean(dim=1)
