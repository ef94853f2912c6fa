"""How much of each class a segmentation finds: pixels counted by true and predicted class, and what follows from that.

Every image is seen whole, squeezed to the model's size; its scores are brought back to the size of its map, so figures
are of the pixels that somebody labelled. Counts are integers and add up: over images, and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pretrain.backbones.base import Backbone
from pretrain.config import Config
from pretrain.data.map_batches import MapBatches
from pretrain.errors import DataError, NumericalError
from pretrain.evaluation.features import evaluating
from pretrain.objectives.base import Objective, Segmenting
from pretrain.types import VOID

Classes = NDArray[np.uint8]  # (H, W), class of every pixel, VOID for none
Reduce = Callable[[Tensor], Tensor]  # int64 on the host of this rank -> their sum over ranks
_FEW = 4  # class names that are said; the table has all of them


@dataclass
class Segmented:
    """What was counted."""

    confusion: Tensor  # (C, C) int64: pixels by true class (rows) and predicted class
    num_images: int = 0
    num_bad: int = 0
    examples: list[tuple[Tensor, Classes, Classes]] = field(default_factory=list)  # image, truth, prediction


def segment(
    objective: Objective,
    backbone: Backbone,
    batches: MapBatches,
    num_classes: int,
    device: torch.device | str = "cpu",
    *,
    num_examples: int = 0,
    reduce: Reduce | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Segmented:
    """Counts over the images of batches, and num_examples of this rank's, evenly spaced, with what was made of them.
    With reduce every rank hands in its own batches and gets the counts of all. Raises NumericalError where scores are
    not finite."""
    found = Segmented(torch.zeros(num_classes, num_classes, dtype=torch.int64))
    total, shown = batches.num_images, max(min(num_examples, batches.num_images), 1)
    chosen = {(2 * number + 1) * total // (2 * shown) for number in range(num_examples)}
    with evaluating(objective), evaluating(backbone):
        for image, truth, predicted in _predicted(objective, backbone, batches, device):
            found.confusion += confusion(truth, predicted, num_classes)
            if found.num_images in chosen:
                found.examples.append((image, truth, predicted))
            found.num_images += 1
            if on_progress is not None:
                on_progress(1)
    found.num_bad = len(batches.bad)
    if reduce is not None:
        counts = torch.tensor([found.num_images, found.num_bad])
        found.confusion, counts = reduce(found.confusion), reduce(counts)
        found.num_images, found.num_bad = counts.tolist()
    return found


def class_names(config: Config) -> tuple[str, ...]:
    """What the classes of a segmentation run are called."""
    assert isinstance(config.objective, Segmenting)
    return config.data.map_names or tuple(str(number) for number in range(config.objective.pixel_classes))


def confusion(truth: Classes, predicted: Classes, num_classes: int) -> Tensor:
    """Pixels by true and predicted class, those of no class left out: (C, C) int64."""
    labelled = truth != VOID
    pairs = truth[labelled].astype(np.int64) * num_classes + predicted[labelled]
    return torch.from_numpy(np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes))


def figures(found: Segmented, names: tuple[str, ...], where: str = "the validation shards") -> dict[str, Any]:
    """Shares in 0..1: `miou`, the mean over classes of the intersection of true and predicted pixels over their union,
    `pixel_accuracy`, and `class_iou` by name; counts; `warnings` in words. A class that is neither in the maps nor
    predicted has no IoU: it is left out of the mean, and of `class_iou`. DataError where no pixel has a class."""
    if not int(found.confusion.sum()):
        bad = f"{found.num_bad} more are bad"
        raise DataError(f"{where}: no pixel of {found.num_images} images ({bad}) has a class; is this the right data?")
    counts = found.confusion.double()
    both = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - both
    there = (union > 0).tolist()
    shares = (both / union).tolist()
    ious = {name: share for name, share, is_there in zip(names, shares, there, strict=True) if is_there}
    absent = [name for name, is_there in zip(names, there, strict=True) if not is_there]
    warnings = []
    if absent:
        some = ", ".join(absent[:_FEW]) + (", ..." if len(absent) > _FEW else "")
        warnings.append(f"{len(absent)} of {len(names)} classes ({some}) are neither in the maps nor predicted: "
                        "they are left out of the mean")  # fmt: skip
    if found.num_bad:
        warnings.append(f"{found.num_bad} images of {where} could not be used and were left out")
    return {
        "miou": sum(ious.values()) / len(ious),
        "pixel_accuracy": float(both.sum() / counts.sum()),
        "class_iou": ious,
        "classes": len(ious),
        "val_images": found.num_images,
        "bad_images": found.num_bad,
        "warnings": warnings,
    }


@torch.no_grad()
def _predicted(
    objective: Objective, backbone: Backbone, batches: MapBatches, device: torch.device | str
) -> Iterator[tuple[Tensor, Classes, Classes]]:
    """Image (C, S_h, S_w) uint8, true classes and predicted ones of every image; of equal scores the lower class."""
    for batch in batches:
        scores = objective.segment(backbone, batch.images.to(device, non_blocking=True))
        if not bool(scores.isfinite().all()):
            raise NumericalError("scores of pixels are not finite: the weights of this checkpoint are of no use")
        for image, truth, of_image in zip(batch.images, batch.maps, scores, strict=True):
            full = interpolate(of_image[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
            yield image, truth, full.argmax(0).to("cpu", torch.uint8).numpy()
