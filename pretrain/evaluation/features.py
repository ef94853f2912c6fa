"""Frozen features: one vector an image, and its patch tokens where asked for, from an encoder that is only read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.evaluation.encoder import Encoder, OwnEncoder
from pretrain.evaluation.tokens import TokenStore

Pool = Literal["mean", "cls"]
_AS_WHOLE = {torch.float32: torch.int32, torch.float16: torch.int16}  # of the same bits
Gather = Callable[[Tensor], Tensor]  # (n_rank, ...) of this rank -> (n, ...) of all ranks, in the order of the dataset


@dataclass(frozen=True)
class Extracted:
    """The features of one split, in the order of the dataset."""

    features: Tensor  # (n, D) float32, on the CPU
    labels: Tensor  # (n,) int64, -1 where the image has no label
    num_bad: int  # images that could not be used; they have no row
    tokens: Tensor | None = None  # (n, N, D) float16, on the CPU; None: not asked for

    @property
    def labelled(self) -> Extracted:
        """The rows that have a label."""
        kept = self.labels >= 0
        if bool(kept.all()):
            return self  # tokens are large
        tokens = None if self.tokens is None else self.tokens[kept]
        return Extracted(self.features[kept], self.labels[kept], self.num_bad, tokens)


def extract(
    backbone: Backbone | Encoder,
    batches: Iterable[tuple[Tensor, Tensor]],
    pool: Pool = "mean",
    layer: int = -1,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    gather: Gather | None = None,
    on_progress: Callable[[int], None] | None = None,
    with_tokens: bool = False,
) -> Extracted:
    """Features of every image of batches: pairs of images (B, C, H, W) uint8 and labels (B,) int64, -1 for none; images
    that could not be used are not among them but in `batches.bad`, where it has that. The whole image is shown, without
    dropout, in float32 or bfloat16. with_tokens keeps the patch tokens of the same pass, as `TokenStore` bounds them.

    Under several ranks each hands in its own batches, image i of the dataset being on rank i mod world, and `gather`
    puts the rows together again. The modes of backbone's modules are put back afterwards; its weights are only read.
    """
    encoder = backbone if isinstance(backbone, Encoder) else OwnEncoder(backbone)
    encoder.check(pool, layer)
    store = TokenStore(getattr(batches, "num_images", 0)) if with_tokens else None

    def pooled(images: Tensor) -> Tensor:
        found = encoder.features(images, layer)
        patches = found.sequence[:, found.num_prefix :]
        if store is not None:
            store.add(patches)
        return found.sequence[:, 0] if pool == "cls" else patches.mean(dim=1)

    with evaluating(backbone):
        found = read(pooled, encoder.width, batches, device, dtype=dtype, gather=gather, on_progress=on_progress)
    if store is None:
        return found
    return replace(found, tokens=store.rows if gather is None else gather(store.rows))


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


def interleave(rank: int, world: int, all_reduce: Callable[[Tensor], Tensor]) -> Gather:
    """A `gather` made of one collective: all_reduce(int64 CPU tensor) gives its sum over all ranks. The ranks take
    turns, a row each, and one that has no more is passed over; every bit arrives as it was."""

    def gather(rows: Tensor) -> Tensor:
        counts = torch.zeros(world, dtype=torch.int64)
        counts[rank] = len(rows)
        counts = all_reduce(counts)
        turn = torch.arange(len(rows))[:, None]
        places = torch.minimum(counts, turn).sum(1) + (counts[:rank] > turn).sum(1)
        whole = _AS_WHOLE.get(rows.dtype, rows.dtype)
        bits = rows.contiguous().view(whole).to(torch.int64)
        placed = torch.zeros(int(counts.sum()), *rows.shape[1:], dtype=torch.int64)
        placed[places] = bits
        return all_reduce(placed).to(whole).view(rows.dtype)

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
