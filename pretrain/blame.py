"""What an error that ended a run means to its user: the sentence and the exit code, where the fault is not ours."""

from __future__ import annotations

import errno
from pathlib import Path

import torch

from pretrain.engine.agree import is_peer_failure, peer_failure
from pretrain.errors import ConfigError, LacunaError, SavedForLater

# What a full, broken or vanished disk says; None is what the ranks say together of any of them.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, None)


def explained(error: Exception, checkpoints: Path, steps_made: int) -> LacunaError | None:
    """The refusal that tells a user of error, None for a bug. steps_made: in this attempt, when it came."""
    stands = f"what was published in {checkpoints} stands"
    if isinstance(error, torch.OutOfMemoryError):
        return _out_of_memory(error, stands, steps_made)
    if isinstance(error, RuntimeError) and is_peer_failure(error):
        return SavedForLater(
            f"another process of this job is gone or stands still ({peer_failure(error)}); {stands}; run the same "
            "command again to go on from it"
        )
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return SavedForLater(
            f"the storage refuses to go on ({error}); {stands}; make room or repair it, and run the same command again"
        )
    return None


def _out_of_memory(error: Exception, stands: str, steps_made: int) -> LacunaError:
    """A first step that does not fit never will; a later one may, once another has left the device."""
    said = str(error).partition(". ")[0]
    if steps_made == 0:
        return ConfigError(
            f"a step does not fit into the memory of the device ({said}); raise engine.accumulation, which cuts "
            "data.batch_size into smaller pieces, or set engine.activation_checkpointing=true or engine.zero_stage=2"
        )
    return SavedForLater(
        f"the device ran out of memory after {steps_made} steps ({said}); {stands}; see who else uses the device, and "
        "run the same command again"
    )
