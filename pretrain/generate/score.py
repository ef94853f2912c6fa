"""What generated images are worth, measured in a space of features against real ones, without looking at them.

`score` compares the two sets (distances.py). `classification_accuracy_score` asks whether the generated images teach
what the real ones do (Ravuri & Vinyals 2019): a classifier is fitted on generated images with the labels they were made
for and tested on real ones. The paper trains a ResNet-50 from nothing; here the features are frozen and the classifier
is the linear probe of evaluation. So the number is not the paper's: compare it with its like, and with that of real
training images in the same space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pretrain.evaluation.evaluate import measure
from pretrain.evaluation.features import Extracted
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.generate.distances import compare
from pretrain.generate.feature_space import Batches, FeatureSpace, in_batches

Progress = Callable[[int], None]
_NAMES = ("the generated images", "the real images")


def score(
    images: Tensor,
    labels: Tensor | None,
    real: Batches | Extracted,
    space: FeatureSpace,
    *,
    k: int = 3,
    k_density: int = 5,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """`space` by name, what `compare` says of real and generated images, `bad_images` among the real ones, and
    `warnings` in words. images (M, C, H, W) uint8 or float in 0..1; real: batches of them, or what `space.of` made of
    them, for those who score many samplers. With labels (M,) int64 also `accuracy` and `chance`, see
    `classification_accuracy_score`; real images then need labels too."""
    known = _known(real, space, on_progress)
    made = space.of(in_batches(images, labels), on_progress=on_progress)
    found = compare(known.features, made.features, k=k, k_density=k_density)
    warnings = found.pop("warnings")
    if labels is not None:
        accuracy = _accuracy(made, known)
        warnings += accuracy.pop("warnings")
        found |= {name: accuracy[name] for name in ("accuracy", "chance")}
    elif known.num_bad:
        warnings.append(f"{known.num_bad} of {_NAMES[1]} could not be decoded and were left out")
    return {"space": space.name, **found, "bad_images": known.num_bad, "warnings": warnings}


def classification_accuracy_score(
    images: Tensor,
    labels: Tensor,
    real: Batches | Extracted,
    space: FeatureSpace,
    *,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """`accuracy`: the share of real images, best of the validation split, that a linear probe fitted on the generated
    images (M, C, H, W) and their labels (M,) int64 classifies; `chance`: the share of the commonest class; `space`,
    `strength` of L2, counts and `warnings`. Features are frozen: those of space."""
    known = _known(real, space, on_progress)
    made = space.of(in_batches(images, labels), on_progress=on_progress)
    return {"space": space.name, **_accuracy(made, known)}


def _known(real: Batches | Extracted, space: FeatureSpace, on_progress: Progress | None) -> Extracted:
    return real if isinstance(real, Extracted) else space.of(real, on_progress=on_progress)


def _accuracy(made: Extracted, known: Extracted) -> dict[str, Any]:
    found = measure(made, known, EvaluationConfig(methods=("linear",)), names=_NAMES)
    return {
        "accuracy": found["linear"],
        "chance": found["chance"],
        "strength": found["linear_l2"],
        "classes": found["classes"],
        "generated_images": found["train_images"],
        "real_images": found["val_images"],
        "bad_images": found["bad_images"],
        "warnings": found["warnings"],
    }
