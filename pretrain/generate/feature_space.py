"""What turns images into features, and what a distance between such features may be called.

The well-known FID is one in the pool of an Inception network with weights of 2015 that nothing here downloads
(inception.py takes them from a file). `own_space` measures in the encoder of a run of ours instead, best a supervised
one on the same images. Its numbers are "FID-own": they rank samplers and checkpoints, and compare with no paper.

Real and generated images go through the same door: rounded to uint8 as a file of them would be, then resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pretrain.engine.load import load_backbone
from pretrain.errors import ConfigError, NumericalError
from pretrain.evaluation.features import Extracted, extract

Batches = Iterable[tuple[Tensor, Tensor]]  # images (B, C, H, W) uint8, or float in 0..1, and labels (B,) int64
_BATCH = 64
_OUTSIDE = 1e-3  # by which a float may leave 0..1: rounding of whoever undid a normalisation


class Reader(Protocol):
    """What makes features of batches of images (B, C, H, W) uint8 of a space's size; `evaluation.features.extract`
    without its encoder is one."""

    def __call__(
        self,
        batches: Batches,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        on_progress: Callable[[int], None] | None,
    ) -> Extracted: ...


@dataclass(frozen=True)
class FeatureSpace:
    """A frozen network and the door to it."""

    name: str  # what its Frechet distance is called: "FID-own (run resnet, step 400)"
    image_size: tuple[int, int]  # height and width that the network takes, pixels
    in_chans: int
    reader: Reader
    device: torch.device | str = "cpu"

    def of(
        self,
        batches: Batches,
        *,
        dtype: torch.dtype = torch.float32,
        on_progress: Callable[[int], None] | None = None,
    ) -> Extracted:
        """Features (n, D) float32 on the CPU, and labels, of every image of batches, such as `evaluation_batches` or
        `in_batches` give; on_progress hears how many images more are done. What could not be decoded is counted."""
        prepared = _Prepared(batches, self.image_size, self.in_chans)
        return self.reader(prepared, device=self.device, dtype=dtype, on_progress=on_progress)


def own_space(
    run_dir: Path, *, weights: str = "ema", step: int | None = None, device: torch.device | str = "cpu"
) -> FeatureSpace:
    """The space of the encoder of a run: means of its patch tokens. weights and step as in `load_backbone`, which also
    says what is raised."""
    loaded = load_backbone(run_dir, weights, step)
    backbone = loaded.backbone.to(device)
    name = f"FID-own (run {loaded.config.name}, step {loaded.step})"
    return FeatureSpace(name, loaded.config.data.image_size, backbone.in_chans, partial(extract, backbone), device)


def in_batches(images: Tensor, labels: Tensor | None = None, size: int = _BATCH) -> Sequence[tuple[Tensor, Tensor]]:
    """images (M, C, H, W) and labels (M,) int64, -1 where there are none, as batches."""
    labels = torch.full((len(images),), -1) if labels is None else labels
    if labels.shape != images.shape[:1]:
        raise ConfigError(f"{len(images)} images have labels of shape {tuple(labels.shape)}; give one an image")
    return list(zip(images.split(size), labels.split(size)))


def as_pixels(images: Tensor, image_size: tuple[int, int], in_chans: int) -> Tensor:
    """images (B, C, H, W) uint8, or float in 0..1, as (B, in_chans, *image_size) uint8: rounded, then resized where the
    size differs, by bicubic interpolation that averages what it reduces. A single channel is repeated."""
    pixels = rounded(images)
    if pixels.shape[1] != in_chans:
        if pixels.shape[1] != 1:
            raise ConfigError(f"images have {pixels.shape[1]} channels, and the space of features takes {in_chans}")
        pixels = pixels.expand(-1, in_chans, -1, -1)
    if tuple(pixels.shape[-2:]) == tuple(image_size):
        return pixels
    resized = interpolate(pixels.float(), size=tuple(image_size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def rounded(images: Tensor) -> Tensor:
    """images (B, C, H, W) uint8, or float in 0..1, as uint8. Raises ConfigError for others, NumericalError for pixels
    that are not finite."""
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ConfigError(
            f"images are {tuple(images.shape)} {images.dtype}; give (B, C, H, W) uint8, or floats in 0..1"
        )
    if images.dtype == torch.uint8 or not images.numel():
        return images.to(torch.uint8)
    if not bool(torch.isfinite(images).all()):
        raise NumericalError("pixels of the generated images are not finite: the sampler or its weights are of no use")
    low, high = float(images.min()), float(images.max())
    if low < -_OUTSIDE or high > 1 + _OUTSIDE:
        raise ConfigError(f"pixels go from {low:.4g} to {high:.4g}; give 0..1: undo the normalisation, then clamp")
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


class _Prepared:
    """Batches behind the door; what could not be decoded is that of the batches themselves."""

    def __init__(self, batches: Batches, image_size: tuple[int, int], in_chans: int) -> None:
        self._batches, self._image_size, self._in_chans = batches, image_size, in_chans

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            yield as_pixels(images, self._image_size, self._in_chans), labels

    @property
    def bad(self) -> Sequence[object]:
        return getattr(self._batches, "bad", ())
