"""Where a run's first weights come from when they are not drawn: `init_from`, and the table of what came from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.backbones.base import Backbone
from pretrain.config import Config
from pretrain.engine.published import encoder_of, has_checkpoint, read_newest
from pretrain.init.fit import Fitted, fit_encoder, fit_objective
from pretrain.init.foreign import Foreign, read_encoder
from pretrain.objectives.base import Objective, Segmenting
from pretrain.objectives.teacher_ema import EmaTeacher

_SHOWN = 6


@dataclass(frozen=True)
class Start:
    """What a run begins with."""

    foreign: Foreign
    encoder: Fitted
    objective: Fitted | None  # None: it starts fresh
    num_objective: int  # tensors of the run's objective
    notes: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """The same for the run's journal."""
        return {
            "source": self.foreign.origin,
            "dialect": self.foreign.dialect,
            "encoder": f"{len(self.encoder.taken)} of {len(self.encoder.state)}",
            "objective": f"{len(self.objective.taken) if self.objective else 0} of {self.num_objective}",
            "positions": self.encoder.positions,
            "mask": self.encoder.mask or "none",
            "fresh": [*self.encoder.fresh, *(self.objective.fresh if self.objective else ())],
            "left_out": [*self.foreign.dropped, *self.encoder.left, *(self.objective.left if self.objective else ())],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        facts, taken = self.facts, len(self.objective.taken) if self.objective else 0
        fresh = "" if taken == self.num_objective else ", fresh" if not taken else ", the others fresh"
        lines = [
            f"encoder   {facts['encoder']} tensors from {self.foreign.origin}, {self.foreign.dialect}",
            f"positions {self.encoder.positions}",
            *([f"mask      {self.encoder.mask}"] if self.encoder.mask else []),
            f"objective {facts['objective']} tensors{fresh}",
        ]
        for key, names in (("fresh", [*self.encoder.fresh]), ("left out", facts["left_out"])):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{key:<9} {', '.join(names[:_SHOWN])}{more}")
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])


def begin(backbone: Backbone, objective: Objective, config: Config) -> Start | None:
    """Fills a model just built with what config.init_from names, and says what came from where; None where nothing is
    named, or the run goes on from a checkpoint: what that trained is restored later, and an encoder that is not trained
    is read here. What learns classes may have another mask than its source. Raises ConfigError for weights that do not
    fit; see `fit_encoder`."""
    if has_checkpoint(config.run_dir):
        if isinstance(config.objective, Segmenting) and config.objective.frozen:
            backbone.load_state_dict(encoder_of(read_newest(config.run_dir, "model").state))
        return None
    if config.init_from is None:
        return None
    foreign, partial = read_encoder(config.init_from), config.init_parts == "fitting"
    free = config.objective.num_classes is not None or isinstance(config.objective, Segmenting)
    encoder = fit_encoder(foreign, backbone, partial=partial, free_mask=free)
    backbone.load_state_dict(encoder.state)
    notes, mine = [*foreign.notes], type(config.objective).__name__
    fitted = None
    if config.init_parts != "encoder" and foreign.objective is not None:
        if foreign.objective == mine:
            fitted = fit_objective(foreign, objective, partial=partial)
            objective.load_state_dict(fitted.state)
        else:
            notes.append(f"the source's objective is {foreign.objective} and this run's {mine}: it starts fresh")
    if fitted is None:
        _follow(objective, backbone)
    notes += _normal_note(foreign, config)
    return Start(foreign, encoder, fitted, len(objective.state_dict()), tuple(notes))


def _follow(objective: Objective, backbone: Backbone) -> None:
    """A teacher that is the student's average begins where the student does."""
    for module in objective.modules():
        if isinstance(module, EmaTeacher):
            module.encoder.backbone.load_state_dict(backbone.state_dict())


def _normal_note(foreign: Foreign, config: Config) -> list[str]:
    here = (tuple(config.data.mean), tuple(config.data.std))
    if foreign.normal is None or foreign.normal == here:
        return []
    there = " and ".join(",".join(f"{v:g}" for v in values) for values in foreign.normal)
    ours = " and ".join(",".join(f"{v:g}" for v in values) for values in here)
    return [f"mean and std of pixels were {there}, and are {ours} here; data.mean and data.std can be set"]
