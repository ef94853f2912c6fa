"""The newest checkpoint of a run that verifies, as named weights: for whoever reads a run and trains another."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pretrain.engine import fsops
from pretrain.engine.commit import BadCheckpoint, Commit, verify
from pretrain.engine.stored import EMA, Reader, read_weights
from pretrain.engine.trust import require_trusted
from pretrain.errors import CheckpointError, ConfigError
from pretrain.sparse.folded import folded

_NAME = re.compile(r"(\d{10})-a\d{6}")
_ENCODER = "backbone."
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What a checkpoint holds, and which it is."""

    directory: Path
    commit: Commit
    which: str  # ema or model
    state: dict[str, Tensor]  # the whole state dict, float32 on the host; of a sparse run what it stands for


def read_newest(run_dir: Path, weights: str = "ema", step: int | None = None) -> Published:
    """The newest checkpoint of run_dir that verifies, or that of step. weights is "model" or "ema", which means the
    weights themselves where the run keeps no average.

    Every byte is compared with the manifest before any is parsed; a checkpoint that fails is left as it is and the one
    before it taken. Raises ConfigError for a step that is not there, CheckpointError where nothing verifies, or where
    somebody else could have written it (`pretrain.engine.trust`)."""
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights={weights!r}; use ema (averaged, where the run keeps that) or model")
    refused = []
    for directory in _candidates(run_dir, step):
        try:
            require_trusted(run_dir, [directory])
            commit = verify(directory)
            which = "ema" if weights == "ema" and Reader(directory).has(EMA) else "model"
            return Published(directory, commit, which, folded(read_weights(directory, ema=which == "ema")))
        except (BadCheckpoint, OSError) as error:  # OSError: a run that goes on has just pruned it
            _LOG.warning("%s is left out: %s", directory, error)
            refused.append(f"{directory.name}: {error}")
    raise CheckpointError(
        f"no checkpoint of {run_dir} verifies ({'; '.join(refused)}); an older one can be asked for by --step, and "
        "training again writes new ones"
    )


def has_checkpoint(run_dir: Path) -> bool:
    """Whether run_dir has a checkpoint, of whatever worth: such a run goes on from it, or refuses to go on."""
    return any(_NAME.fullmatch(name) for name in fsops.names(run_dir / "ckpt"))


def encoder_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a whole state dict, by the names they have in the encoder."""
    return {name.removeprefix(_ENCODER): tensor for name, tensor in state.items() if name.startswith(_ENCODER)}


def _candidates(run_dir: Path, step: int | None) -> list[Path]:
    """Checkpoint directories newest first, those of step alone where it is given."""
    matches = [match for name in fsops.names(run_dir / "ckpt") if (match := _NAME.fullmatch(name))]
    if not matches:
        raise CheckpointError(f"{run_dir} has no checkpoint yet; the first is written at checkpoint.every_steps")
    there = sorted({int(match[1]) for match in matches})
    if step is not None and step not in there:
        known = ", ".join(map(str, there))
        raise ConfigError(f"{run_dir} has no checkpoint of step {step}; it has those of steps {known}")
    return sorted((run_dir / "ckpt" / m[0] for m in matches if step is None or int(m[1]) == step), reverse=True)
