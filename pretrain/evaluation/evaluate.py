"""What an encoder is worth without fine-tuning: kNN, probes, few labels, and the effective rank of its features.
Of a supervised run, the accuracy of its own head as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError, DataError, NumericalError
from pretrain.evaluation.attentive import OnBatch, fit_attentive
from pretrain.evaluation.encoder import Encoder
from pretrain.evaluation.features import Extracted, Gather, extract
from pretrain.evaluation.head import Head, predict
from pretrain.evaluation.knn import knn_predict
from pretrain.evaluation.linear import fit_probe, held_out
from pretrain.evaluation.linear_sgd import fit_sgd
from pretrain.evaluation.lowshot import SHARES, low_shot
from pretrain.evaluation.rank import effective_rank
from pretrain.evaluation.settings import EvaluationConfig

Batches = Iterable[tuple[Tensor, Tensor]]


def evaluate(
    backbone: Backbone | Encoder, train_batches: Batches, val_batches: Batches | None, cfg: EvaluationConfig, *,
    head: Head | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    gather: Gather | None = None,
    is_main: bool = True,
    names: tuple[str, str] = ("the training shards", "the validation shards"),
    on_progress: Callable[[int], None] | None = None,
    on_probe: OnBatch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracies as shares in 0..1 under the names of cfg.methods, `chance` (the share of the commonest class),
    `effective_rank`, counts, and `warnings` in words. `extract` says what the batches are and what gather does.

    The head is asked of val_batches. Where nothing else is measured, train_batches are not read: there is `head`,
    `chance`, counts and `warnings`.

    Without val_batches kNN is asked of every training image with that image left out, and the probe is tested on a
    fifth of each class, which it was not fitted on. Under several ranks all extract and the main one goes on; others
    get {}. on_progress hears of images read, on_probe of images that the attentive probe has learnt from.
    """

    def features(batches: Batches) -> Extracted:
        return extract(
            backbone, batches, cfg.pool, cfg.layer, device, dtype=dtype, gather=gather, on_progress=on_progress,
            with_tokens="attentive" in cfg.methods,
        )  # fmt: skip

    found: dict[str, Any] = {}
    if "head" in cfg.methods:
        assert head is not None and val_batches is not None and isinstance(backbone, Backbone)  # `check_methods`
        predicted = predict(head, backbone, val_batches, device, dtype=dtype, gather=gather, on_progress=on_progress)
        found = _headed(predicted, head.num_classes, names[1]) if is_main else {}
    if set(cfg.methods) == {"head"}:
        return found
    train = features(train_batches)
    val = None if val_batches is None else features(val_batches)
    if not is_main:
        return {}
    return _with_head(found, measure(train, val, cfg, names=names, device=device, on_probe=on_probe))


def measure(
    train: Extracted,
    val: Extracted | None,
    cfg: EvaluationConfig,
    *,
    names: tuple[str, str] = ("the training shards", "the validation shards"),
    device: torch.device | str = "cpu",
    on_probe: OnBatch | None = None,
) -> dict[str, Any]:
    """`evaluate` from features that are there already, with their tokens for the attentive probe, which alone learns on
    device."""
    warnings = [*_check(train, names[0]), *(_check(val, names[1]) if val is not None else [])]
    seen, tested = train.labelled, None if val is None else val.labelled
    x, labels = seen.features, seen.labels
    classes, labels = labels.unique(return_inverse=True)  # shards may number their classes with gaps
    if tested is None:
        asked, truth = None, labels
        warnings.append(f"there is no validation split: images of {names[0]} were tested against the rest of them")
    else:
        asked, truth = tested.features, _numbered(tested.labels, classes)
        warnings += _unknown_words(tested.labels[truth < 0], names)
    warnings += _choice_words(cfg, len(x) - (val is None))
    scores: dict[str, Any] = {}
    if "knn" in cfg.methods:
        scores["knn"] = _share(knn_predict(x, labels, asked, cfg.k, cfg.temperature) == truth)
    scores |= _probed(cfg.methods, x, labels, asked, truth)
    if "attentive" in cfg.methods:
        scores |= _attended(seen, None if tested is None else tested.tokens, labels, truth, device, on_probe)
    return scores | {
        "chance": float(truth[truth >= 0].bincount(minlength=1).max()) / len(truth),
        "effective_rank": effective_rank(train.features),
        "train_images": len(train.features),
        "val_images": 0 if val is None else len(val.features),
        "classes": len(classes),
        "bad_images": train.num_bad + (0 if val is None else val.num_bad),
        "warnings": warnings,
    }


def _headed(predicted: Extracted, num_classes: int, name: str) -> dict[str, Any]:
    warnings = _check(predicted, name)
    labels = predicted.labelled.labels
    warnings += _unknown_words(labels[labels >= num_classes], (f"the head's {num_classes}", name))
    return {
        "head": _share(predicted.labelled.features[:, 0] == labels),
        "chance": int(labels.bincount().max()) / len(labels),
        "val_images": len(predicted.labels),
        "bad_images": predicted.num_bad,
        "warnings": warnings,
    }


def _with_head(found: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with the head's share in front; what is odd about the validation split is said once."""
    if not found:
        return measured
    warnings = list(dict.fromkeys([*found["warnings"], *measured["warnings"]]))
    return {"head": found["head"], **measured, "warnings": warnings}


def _probed(
    methods: tuple[str, ...], x: Tensor, labels: Tensor, asked: Tensor | None, truth: Tensor
) -> dict[str, float]:
    """What the trained probes among methods get right, and what was chosen for each."""
    if asked is None:
        held = held_out(labels)
        x, labels, asked, truth = x[~held], labels[~held], x[held], labels[held]
    scores: dict[str, float] = {}
    if "linear" in methods:
        probe = fit_probe(x, labels)
        scores |= {"linear": _share(probe.predict(asked) == truth), "linear_l2": probe.strength}
    if "linear-sgd" in methods:
        trained = fit_sgd(x, labels)
        scores |= {"linear-sgd": _share(trained.predict(asked) == truth), "linear-sgd_lr": trained.rate}
    if "lowshot" in methods:
        for share in SHARES:
            mean, deviation = low_shot(x, labels, asked, truth, share)
            scores |= {f"lowshot_{share:.0%}": mean, f"lowshot_{share:.0%}_std": deviation}
    return scores


def _attended(
    train: Extracted, asked: Tensor | None, labels: Tensor, truth: Tensor, device: torch.device | str,
    on_probe: OnBatch | None,
) -> dict[str, float]:  # fmt: skip
    """What the attentive probe gets right, and the rate that was chosen for it."""
    tokens = train.tokens
    assert tokens is not None
    if asked is None:
        held = held_out(labels)
        tokens, labels, asked, truth = tokens[~held], labels[~held], tokens[held], labels[held]
    probe = fit_attentive(tokens, labels, device=device, on_batch=on_probe)
    return {"attentive": _share(probe.predict(asked) == truth), "attentive_lr": probe.rate}


def _share(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def _numbered(labels: Tensor, classes: Tensor) -> Tensor:
    """The place of each label (n,) in classes (C,) ascending, -1 where it has none."""
    place = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[place] == labels, place, -1)


def _check(split: Extracted, name: str) -> list[str]:
    """Words on what is odd about a split; raises for one that cannot be used."""
    total, labelled = len(split.labels), len(split.labelled.labels)
    if total == 0:
        raise DataError(f"{name}: no image could be used ({split.num_bad} could not be decoded)")
    if labelled == 0:
        raise ConfigError(
            f"{name} have no labels, and evaluation needs one an image: a member .cls (a class number) "
            "beside it; `lacuna pack` writes them for folders with one folder a class"
        )
    if labelled < 2:
        raise ConfigError(f"{name} have {labelled} labelled image; at least 2 are needed")
    if not bool(torch.isfinite(split.features).all()):
        raise NumericalError(f"features of {name} are not finite: the weights of this checkpoint are of no use")
    words = []
    if split.num_bad:
        words.append(f"{split.num_bad} images of {name} could not be decoded and were left out")
    if labelled < total:
        words.append(f"{total - labelled} of {total} images of {name} have no label and were left out of the scores")
    return words


def _unknown_words(labels: Tensor, names: tuple[str, str]) -> list[str]:
    if not len(labels):
        return []
    classes = labels.unique().tolist()
    shown = ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")
    return [f"{len(labels)} images of {names[1]} are of classes that {names[0]} lack ({shown}): they count as wrong"]


def _choice_words(cfg: EvaluationConfig, neighbours: int) -> list[str]:
    words = []
    if "knn" in cfg.methods and cfg.k > neighbours:
        words.append(f"k={cfg.k}, but there are only {neighbours} neighbours: all of them voted")
    if cfg.pool == "cls":
        words.append(
            "pool=cls: nothing in a masked autoencoder's loss asks its class token for anything, and it may score near "
            "chance although the encoder is fine; compare with pool=mean"
        )
    return words
