"""What an export says of itself: how it was proved, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.errors import LacunaError


class ExportError(LacunaError):
    """What was written does not give its reader the same encoder; nothing was published."""


@dataclass(frozen=True)
class Parity:
    """What a reader made of a file it loaded whole: nothing missing, nothing unexpected, or there is no Parity."""

    loaded: int  # tensors
    max_difference: float | None  # between the reader's features and ours; None: it was not there to ask
    scale: float  # the largest of our features
    by: str  # the reader and its version; or, where there is none, what was looked at in its place

    def __str__(self) -> str:
        counted = f"{self.loaded} loaded / 0 missing / 0 unexpected"
        if self.max_difference is None:
            return f"{counted}, {self.by}"
        return f"{counted}, max difference {self.max_difference:.1e} in features up to {self.scale:.1f}, by {self.by}"


@dataclass(frozen=True)
class Written:
    """What a target made of an encoder."""

    architecture: str  # in the reader's words
    call: str  # the lines of Python or of a config that load it
    parity: Parity
    model_args: dict[str, Any] = field(default_factory=dict)  # in which it differs from the architecture of that name
    notes: tuple[str, ...] = ()  # what a user has to know


@dataclass(frozen=True)
class ExportReport:
    """What was published, and how to load it; printed as a few lines."""

    weights: Path
    card: Path
    step: int
    which: str  # ema or model
    written: Written

    @property
    def architecture(self) -> str:
        """In the reader's words."""
        return self.written.architecture

    @property
    def model_args(self) -> dict[str, Any]:
        """In which it differs from the architecture of that name."""
        return self.written.model_args

    @property
    def parity(self) -> Parity:
        """How it was proved."""
        return self.written.parity

    @property
    def call(self) -> str:
        """What loads it."""
        return self.written.call

    def __str__(self) -> str:
        lines = [f"{self.weights}: step {self.step} ({self.which}) as {self.architecture}", f"  {self.parity}"]
        lines += [f"  {note}" for note in self.written.notes]
        loading = self.call.splitlines()
        lines += [f"  load it: {loading[0]}", *(f"           {line}" for line in loading[1:]), f"  card: {self.card}"]
        return "\n".join(lines)
