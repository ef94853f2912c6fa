"""Who gives the features that a student is aligned with, and the one copy of it that a process keeps.

A frozen teacher belongs to no module: neither DeepSpeed nor a checkpoint, nor `model.train()`, ever sees it. It is
loaded once in a process, on first use there is a copy of it on the device of the images, in the number format of the
run. The average of a student is another matter: it is state, and lives in teacher_ema.py."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.objectives.importance import Importance
from pretrain.objectives.teacher_encoders import Lesson, TeacherEncoder
from pretrain.objectives.teacher_files import open_teacher
from pretrain.ranges import Range, check_ranges

EMA = "ema"
_DECAY = 0.999
_RANGES: dict[str, Range] = {"ema_decay": ("above 0 and below 1", lambda v: 0 < v < 1)}


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher by name. Nothing is ever downloaded."""

    # The student's average, a model of timm's, or a folder: a run, an export, Hugging Face's CLIP, ViT, ViTMAE, DINOv2.
    model: str = EMA  # ema, timm's name of a ViT (with weights), or a folder that holds a teacher
    weights: str | None = None  # of a timm name: its file, or random (for tests and timings); of a run: ema or model
    ema_decay: float | None = None  # share of itself the student's average keeps in an update; none: 0.999
    importance: Importance = "class"  # of patches, for masks: attention of the class token, or received, or similarity
    compile: bool = False  # torch.compile of a frozen teacher, on a GPU

    @property
    def is_ema(self) -> bool:
        """Whether the teacher is the average of the student."""
        return self.model == EMA

    @property
    def decay(self) -> float:
        """Share of itself that the average keeps in an update."""
        return _DECAY if self.ema_decay is None else self.ema_decay

    def check(self) -> None:
        """Raises ConfigError for settings that cannot be meant, or would have no effect."""
        check_ranges(vars(self), _RANGES, "objective.teacher.")
        if self.is_ema and self.weights is not None:
            raise ConfigError(
                f"objective.teacher.weights={self.weights} has no effect: the teacher is the student's average; name a "
                "model by objective.teacher.model, or set objective.teacher.weights=none"
            )
        if self.is_ema and self.compile:
            raise ConfigError("objective.teacher.compile=true is for frozen teachers, and objective.teacher.model=ema")
        if not self.is_ema and self.ema_decay is not None:
            raise ConfigError(
                f"objective.teacher.ema_decay={self.ema_decay} has no effect: objective.teacher.model={self.model} is "
                "frozen; set objective.teacher.ema_decay=none, or objective.teacher.model=ema"
            )


class FrozenTeacher:
    """A teacher that is not trained: in eval mode, without gradients, outside of every module."""

    def __init__(self, encoder: TeacherEncoder, compile_on_gpu: bool) -> None:
        self.encoder = encoder.eval().requires_grad_(False)  # float32, on the CPU
        self._compile = compile_on_gpu
        self._copies: dict[tuple[torch.device, torch.dtype], TeacherEncoder] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, levels: Sequence[int], importance: Importance, dtype: torch.dtype) -> Lesson:
        """What it says of images (B, C, H, W) uint8, computed where they are and in dtype."""
        lesson: Lesson = self._on(images.device, dtype)(images, levels, importance)
        return lesson

    def _on(self, device: torch.device, dtype: torch.dtype) -> TeacherEncoder:
        if device.type == "cpu" and dtype == torch.float32:
            return self.encoder
        if (device, dtype) not in self._copies:
            moved = copy.deepcopy(self.encoder).to(device, dtype)
            if self._compile and device.type == "cuda":
                moved.compile()
            self._copies[device, dtype] = moved
        return self._copies[device, dtype]


@cache
def frozen_teacher(config: TeacherConfig, grid: Grid) -> FrozenTeacher:
    """The teacher of config for a student with such a grid: read from its files once in a process, whoever asks.
    Raises ConfigError where there is none, or none that can be used. torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return FrozenTeacher(open_teacher(config.model, config.weights, grid), config.compile)
