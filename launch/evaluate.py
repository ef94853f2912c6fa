"""`lacuna evaluate`: what frozen features are worth, of one encoder or of several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.data.evaluation_batches import EvaluationBatches
    from pretrain.evaluation.settings import EvaluationConfig
    from pretrain.evaluation.sources import Source

_EXAMPLES = """examples:
  lacuna evaluate runs/first --data val/ --untrained
  lacuna evaluate runs/first runs/second exports/vit timm:vit_base_patch16_224.mae \\
      --data val/ --train-data train/ --methods knn,linear,attentive --out compared"""


def add_options(made: argparse.ArgumentParser) -> None:
    """What `lacuna evaluate` may be told."""
    made.epilog = _EXAMPLES
    made.add_argument(
        "sources", nargs="+", metavar="SOURCE",
        help="run directory, for example runs/first; an export; a file of published weights; a model of timm's by "
        "name, timm:vit_small_patch16_224 (its weights from the hub's cache, or drawn ones where they are not there)",
    )  # fmt: skip
    made.add_argument(
        "--data", help="labelled shards to test on: a pattern or a folder of tars (default: the run's data.val)"
    )
    made.add_argument("--train-data", help="labelled shards to learn from (default: the run's data.train)")
    made.add_argument(
        "--methods", help="of knn, linear, linear-sgd, lowshot, attentive, head (default: knn,linear, a run's head)"
    )
    made.add_argument("--weights", choices=("ema", "model"), help="which of a run's (default ema, where kept)")
    made.add_argument(
        "--pool", choices=("mean", "cls"),
        help="mean of the patch tokens, or the class token (default: the run's setting; else mean)",
    )  # fmt: skip
    made.add_argument(
        "--layer", type=int, help="block whose output is used; -1 is the last (default: the run's setting; else -1)"
    )
    made.add_argument("--step", type=int, help="checkpoint of this step of a run (default: the newest)")
    made.add_argument(
        "--max-images", type=int, help="use at most so many images of each split (default: the run's setting, else "
        "10000; with --attention: 30)",
    )  # fmt: skip
    made.add_argument("--all-images", action="store_true", help="use every image, whatever the run's setting is")
    made.add_argument(
        "--untrained", action="store_true", help="measure the same encoder with its initial weights as well"
    )
    made.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="write evaluation.json and evaluation.png there (default: evaluate-step-*.json and .png in each run)",
    )  # fmt: skip
    made.add_argument(
        "--attention", action="store_true", help="measure a run's maps of attention instead: their rank, block by block"
    )


@dataclass(frozen=True)
class _Job:
    """An encoder with all that it takes to measure it."""

    source: Source
    cfg: EvaluationConfig
    names: tuple[str, str]  # of the shards to learn from, and to be tested on
    train: EvaluationBatches
    val: EvaluationBatches
    notes: tuple[str, ...]

    @property
    def num_reads(self) -> int:
        """Images read for one set of weights."""
        head = self.val.num_images if "head" in self.cfg.methods else 0
        return head + (self.train.num_images + self.val.num_images if set(self.cfg.methods) != {"head"} else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What is worth keeping of it."""
        from pretrain.config import to_json

        source = self.source
        return {
            "origin": source.origin, "image_size": list(source.data.image_size), "mean": list(source.data.mean),
            "std": list(source.data.std), "train_data": self.names[0], "data": self.names[1],
            "settings": to_json(self.cfg), "notes": list(self.notes),
        }  # fmt: skip


def evaluate(options: argparse.Namespace) -> None:
    """Prints a table, a line an encoder. Its figures, with all that they depend on, and a picture of them are kept in
    --out, else in the directory of each run."""
    from launch.evaluation_results import table, write
    from pretrain.evaluation.sources import open_source

    if options.attention:
        from launch.attention import evaluate_attention

        return evaluate_attention(options)
    _check(options)
    jobs = [_job(open_source(given, options.weights, options.step), options) for given in options.sources]
    measured = [_measure(job, untrained=options.untrained) for job in jobs]
    is_one_run = len(jobs) == 1 and jobs[0].source.run is not None
    named = measured[0] if is_one_run else _named(jobs, measured)
    print(table(named))
    for job in jobs:
        for note in job.notes:
            print(f"note: {note if is_one_run else f'{job.source.given}: {note}'}")
    if options.out is not None:
        write(options.out / "evaluation", {"sources": {job.source.given: job.facts for job in jobs}}, named)
        return
    for job, results in zip(jobs, measured, strict=True):
        run = job.source.run
        if run is not None:
            facts = {"step": run.step, "weights": run.which, **job.facts}
            write(Path(job.source.given) / f"evaluate-step-{run.step:07d}", facts, results)


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for what can be refused before anything is opened."""
    twice = [given for given in options.sources if options.sources.count(given) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; one line a source is all there can be")
    if options.all_images and options.max_images is not None:
        raise ConfigError(f"--all-images and --max-images={options.max_images} exclude each other; leave one out")
    if options.max_images is not None and options.max_images < 2:
        raise ConfigError(f"--max-images={options.max_images}; give 2 images or more")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out={options.out} is a file; name a folder")


def _job(source: Source, options: argparse.Namespace) -> _Job:
    """Settings and images for source; all that can be refused of them is refused here."""
    from pretrain.data.evaluation_batches import evaluation_batches
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import cache_of
    from pretrain.evaluation.encoder import Encoder, OwnEncoder

    cfg = _settings(source, options)
    encoder = source.measured[0]
    (encoder if isinstance(encoder, Encoder) else OwnEncoder(encoder)).check(cfg.pool, cfg.layer)
    names = _patterns(source, options)
    cache = None if source.run is None else cache_of(source.data, Path(source.given))
    sets = [open_shards(name, cache=cache) for name in names]
    train, val = (evaluation_batches(split, source.data, batch_size=64, max_images=cfg.max_images) for split in sets)
    notes = source.notes
    if source.run is not None and options.train_data is None and sets[0].fingerprint != source.run.fingerprint:
        notes += (f"{names[0]} is not the data this run was trained on: its fingerprint is another",)
    return _Job(source, cfg, names, train, val, notes)


def _settings(source: Source, options: argparse.Namespace) -> EvaluationConfig:
    from pretrain.checks import check_methods
    from pretrain.evaluation.settings import EvaluationConfig, Method

    config, known = source.config, get_args(Method)
    has_head = config is not None and config.objective.num_classes is not None
    asked = f"knn,linear{',head' * has_head}" if options.methods is None else options.methods
    methods = tuple(part.strip() for part in asked.split(",") if part.strip())
    if not methods or set(methods) - set(known):
        raise ConfigError(f"--methods={options.methods}; choose of {', '.join(known)}, by commas")
    if config is not None:
        check_methods(config.objective, methods, "--methods")
    elif "head" in methods:
        raise ConfigError(f"--methods={options.methods}: head is a run's own classifier, and {source.given} is no run")
    changes: dict[str, Any] = {"methods": methods}
    for name in ("pool", "layer", "max_images"):
        value = getattr(options, name)
        changes |= {} if value is None else {name: value}
    if options.all_images:
        changes["max_images"] = None
    return replace(EvaluationConfig() if config is None else config.evaluation, **changes)


def _patterns(source: Source, options: argparse.Namespace) -> tuple[str, str]:
    """Shards to learn from and to be tested on: those of the command line, else the run's own."""
    from pretrain.data.sources import as_pattern, patterns

    given = (options.train_data, options.data)
    own: tuple[str | None, str | None] = (None, None)
    if None in given and source.config is None:
        lacks = " and ".join(name for name, text in zip(("--train-data", "--data"), given, strict=True) if text is None)
        raise ConfigError(
            f"{source.given} is no run, whose config would say where labelled images are: give {lacks} (a pattern or a "
            "folder of shards; `lacuna pack` makes them)"
        )
    if None in given and source.config is not None:
        own = patterns(source.config.data, Path(source.config.runs_dir))
    train, val = (as_pattern(text) if text else pattern for text, pattern in zip(given, own, strict=True))
    if train is None or val is None:
        raise ConfigError("there are no labelled images to test on: give --data val/, or set data.val in the config")
    return train, val


def _measure(job: _Job, *, untrained: bool) -> dict[str, dict[str, Any]]:
    """Figures by the weights they are of."""
    import torch

    from pretrain.evaluation.evaluate import evaluate as measure
    from pretrain.evaluation.head import Head

    source, device = job.source, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates = {source.label: source.measured}
    if untrained and source.untrained is not None:
        candidates["untrained"] = source.untrained()
    results = {}
    for label, (encoder, objective) in candidates.items():
        head = None if objective is None or source.config is None else Head.of(
            objective.to(device), source.config.objective
        )  # fmt: skip
        with _phases(job, f"{source.given}, {label}") as phases:
            results[label] = measure(
                encoder.to(device), job.train, job.val, job.cfg, head=head, device=device, names=job.names,
                on_progress=phases.read, on_probe=phases.learn,
            )  # fmt: skip
    return results


class _Phases:
    """Progress of one encoder: images are read, then the attentive probe learns; one line at a time."""

    def __init__(self, total: int, name: str) -> None:
        from pretrain.tracking.progress import Progress

        self._new, self._name = Progress, name
        self._now = Progress(total, "images", f"evaluating {name}").__enter__()
        self._learns = False

    def read(self, number: int) -> None:
        """So many images more were read."""
        self._now.advance(number)

    def learn(self, done: int, total: int) -> None:
        """The probe has learnt from so many images, of how many."""
        if not self._learns:
            self.close()
            self._now = self._new(total, "images", f"attentive probe on {self._name}").__enter__()
            self._learns = True
        self._now.advance(done - self._now.done)

    def close(self, error: BaseException | None = None) -> None:
        """Ends the line."""
        self._now.__exit__(None if error is None else type(error), error, None)


@contextmanager
def _phases(job: _Job, name: str) -> Iterator[_Phases]:
    phases = _Phases(job.num_reads, name)
    try:
        yield phases
    except BaseException as error:
        phases.close(error)
        raise
    phases.close()


def _named(jobs: Sequence[_Job], measured: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What was measured of every source, under names that tell them apart."""
    named = {}
    for job, results in zip(jobs, measured, strict=True):
        for label, result in results.items():
            own = label == job.source.label
            named[job.source.name if own else f"{job.source.given}, {label}"] = result
    return named
