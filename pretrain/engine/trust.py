"""Whose files a checkpoint is read from: nobody else could have written them, or the user said that they may.

A checkpoint has no code, but who can change one can change weights and manifest together, and what was trained is no
longer what it says. So a run's directory, ckpt/ and all that a checkpoint is made of must be owned by this user or by
root, and must not be writable by everybody. A group may write: that is how shared project folders and `umask 002` are,
and who is in it was chosen by the owner. Links inside a checkpoint are refused by `commit.verify`, whatever is said."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pretrain.engine import fsops
from pretrain.errors import CheckpointError


@dataclass
class Trust:
    """What the command line said, once for the process: `--trust`."""

    everyone: bool = False


TRUST = Trust()


def require_trusted(run_dir: Path, checkpoints: Iterable[Path]) -> None:
    """Raises CheckpointError where somebody else could have written these checkpoint directories of a run."""
    reason = objection(run_dir, checkpoints)
    if reason is not None:
        raise CheckpointError(reason)


def objection(run_dir: Path, checkpoints: Iterable[Path], own: int | None = None) -> str | None:
    """Why these checkpoint directories of a run are not read, in a sentence; None where nothing speaks against it, or
    the user trusts everyone. own: the user id that the file system gives to what this process writes, where that is
    known: a container or a server of files may show it as another than the process has."""
    if TRUST.everyone:
        return None
    ours = {os.geteuid(), 0} | ({own} if own is not None else set())
    for path in (run_dir, run_dir / "config.json", run_dir / "ckpt"):
        if path.exists() and (what := _fault(path.stat(), ours)) is not None:
            return _sentence(path, what)
    for directory in checkpoints:
        for path in (directory, *(directory / name for name in fsops.names(directory))):
            if (what := _fault(path.lstat(), ours)) is not None:
                return _sentence(path, what)
    return None


def _fault(status: os.stat_result, ours: set[int]) -> str | None:
    """What is wrong with a file or directory of these facts."""
    if status.st_uid not in ours:
        return f"belongs to user {status.st_uid}, and neither to you ({os.geteuid()}) nor to root"
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if open_to_all and not stat.S_ISLNK(status.st_mode):  # the mode of a link says nothing
        return "may be written by everybody on this system"
    return None


def _sentence(path: Path, what: str) -> str:
    return (
        f"{path} {what}, so its weights may be another's; copy the run or mend it (chown, chmod o-w), or give --trust "
        "to read it as it is"
    )
