"""What is asked of each way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.config import Config
from pretrain.engine.load import Loaded
from pretrain.export.report import Written


@dataclass(frozen=True)
class Job:
    """One export under way."""

    loaded: Loaded
    file: Path  # the weights, in the draft; what goes beside them goes into the same folder
    final: Path  # where they will be
    license_name: str | None

    @property
    def folder(self) -> Path:
        """The draft."""
        return self.file.parent


@dataclass(frozen=True)
class Target:
    """A library or format that encoders are written for."""

    says: str  # who reads it, for help and card
    main: str  # the weights' name in a folder
    check: Callable[[Config], object]  # raises ConfigError for runs it has no place for, before a weight is read
    write: Callable[[Job], Written]  # writes and proves. Raises ExportError
    beside: tuple[str, ...] = ()  # what it writes next to the weights
    only_folder: bool = False  # its reader looks for files by their names
    with_objective: bool = False  # it writes the decoder as well
    library_name: str | None = None  # of the hub's model cards
