"""What `lacuna evaluate` can be pointed at: a run, an export or a published file, a model of timm's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.backbones.base import Backbone
from pretrain.config import Config
from pretrain.data.settings import DataConfig
from pretrain.engine.load import Loaded, load_backbone, untrained_backbone, untrained_model
from pretrain.errors import ConfigError
from pretrain.evaluation.encoder import Encoder
from pretrain.evaluation.foreign_encoder import open_foreign, untrained_like
from pretrain.evaluation.timm_encoder import open_timm
from pretrain.objectives.base import Objective
from pretrain.weights_file import weights_in

Measured = tuple[Backbone | Encoder, Objective | None]  # what is measured; the objective of a run that has a head


@dataclass(frozen=True)
class Source:
    """An encoder, on the CPU and in eval mode, and what is known of it."""

    given: str  # as it was asked for
    label: str  # which weights: "step 700 (ema)", "weights", "pretrained", "untrained"
    origin: str  # where they come from, for people
    measured: Measured
    untrained: Callable[[], Measured] | None  # the same with drawn weights; None: it has drawn ones
    data: DataConfig  # size, channels and normalisation of its images; of a run its shards, too
    run: Loaded | None = None
    notes: tuple[str, ...] = ()  # what had to be assumed

    @property
    def name(self) -> str:
        """Source and weights."""
        return self.given if self.label == "weights" else f"{self.given}, {self.label}"

    @property
    def config(self) -> Config | None:
        """Of a run."""
        return None if self.run is None else self.run.config


def open_source(given: str, weights: str | None = None, step: int | None = None) -> Source:
    """The encoder that given names. weights ("ema", the default, or "model") and step choose among those of a run, and
    are refused for others. Raises ConfigError for what is not there or cannot be measured, CheckpointError as
    `load_backbone` does."""
    path = Path(given)
    if is_run(path):
        return _run(given, load_backbone(path, weights or "ema", step))
    for option, value in (("--weights", weights), ("--step", step)):
        if value is not None:
            raise ConfigError(f"{option}={value} has no effect: {given} is no run, and has one set of weights")
    if path.exists():
        backbone, data, notes = open_foreign(given)
        drawn = lambda: (untrained_like(given), None)  # noqa: E731
        return Source(given, "weights", given, (backbone, None), drawn, data, None, notes)
    if not re.fullmatch(r"(timm:)?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", given) or path.suffix in (".pth", ".pt", ".bin"):
        raise ConfigError(
            f"{given} does not exist; give the directory of a run, an export, a file of weights, a folder of Hugging "
            "Face's, or the name of a model of timm's"
        )
    return _timm(given)


def is_run(path: Path) -> bool:
    """Whether path is the directory of a run, and not that of an export: a run that has no checkpoint yet is one."""
    if not path.is_dir() or (path / "ckpt").is_dir():
        return path.is_dir()
    try:
        weights_in(path)
    except ConfigError:
        return True
    return False


def _run(given: str, loaded: Loaded) -> Source:
    def untrained() -> Measured:
        if loaded.objective is None:
            return untrained_backbone(loaded.config), None
        model = untrained_model(loaded.config)
        return model.backbone, model.objective

    label = f"step {loaded.step} ({loaded.which})"
    measured = loaded.backbone, loaded.objective
    return Source(given, label, f"{given} ({label})", measured, untrained, loaded.config.data, loaded)


def _timm(given: str) -> Source:
    name = given.removeprefix("timm:")
    encoder, origin = open_timm(name)
    label = origin.partition(":")[0]
    data = DataConfig(
        "", image_size=encoder.image_size, in_chans=encoder.in_chans, mean=encoder.normal[0], std=encoder.normal[1]
    )
    drawn = label == "untrained"
    notes = (f"{origin.removeprefix('untrained: ')}, and nothing is downloaded here: drawn weights",) if drawn else ()
    untrained = None if drawn else lambda: (open_timm(name, untrained=True)[0], None)
    return Source(given, label, origin, (encoder, None), untrained, data, None, notes)
