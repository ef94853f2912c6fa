"""COMMIT.json: what makes a directory a checkpoint. It names every file with size and hash, and itself by hash.

No weight format notices a flipped bit, so nothing of a checkpoint is parsed before `verify` has compared all of it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain import strict_json
from pretrain.engine import fsops
from pretrain.engine.fsops import FileSum

COMMIT = "COMMIT.json"
_VERSION = 1


class BadCheckpoint(ValueError):
    """Why a directory is no checkpoint: names the file, what it should be and what it is."""


@dataclass(frozen=True)
class Commit:
    """The content of COMMIT.json."""

    step: int
    attempt: int
    layout: str  # Engine.layout_kind of the ranks that wrote it
    run: dict[str, Any]  # RunState
    optim: dict[str, Any]  # OptimConfig
    files: dict[str, FileSum]

    def encode(self) -> bytes:
        """The bytes of the file; the same content always gives the same bytes."""
        body = {"version": _VERSION, **asdict(self)}
        digest = hashlib.sha256(_canonical(body)).hexdigest()
        return _canonical({"body": body, "sha256": digest}) + b"\n"


def directory_name(step: int, attempt: int) -> str:
    """Sorts by step, then by attempt."""
    return f"{step:010d}-a{attempt:06d}"


def decode(data: bytes) -> Commit:
    """The Commit that data encodes; anything but exactly such bytes is a BadCheckpoint."""
    try:
        body = strict_json.loads(data)["body"]
        files = {str(name): FileSum(int(f["size"]), str(f["sha256"])) for name, f in body["files"].items()}
        commit = Commit(
            int(body["step"]), int(body["attempt"]), str(body["layout"]), dict(body["run"]), dict(body["optim"]), files
        )
        good = body["version"] == _VERSION and commit.encode() == data
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{COMMIT} cannot be read ({type(error).__name__})") from error
    if not good:
        raise BadCheckpoint(f"{COMMIT} is not what was written")
    return commit


def read_commit(directory: Path) -> Commit:
    """directory's Commit, checked against itself and against directory's name."""
    try:
        commit = decode(fsops.read(directory / COMMIT))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{COMMIT} is missing") from error
    except ValueError as error:
        raise BadCheckpoint(str(error)) from error
    if directory.name != directory_name(commit.step, commit.attempt):
        raise BadCheckpoint(f"{COMMIT} is that of {directory_name(commit.step, commit.attempt)}")
    return commit


def verify(directory: Path, hashed: Container[str] | None = None) -> Commit:
    """directory's Commit after comparing its set of files, their sizes, and the hashes of those in hashed (None: all).

    Raises BadCheckpoint for what is wrong, OSError for what cannot be read now.
    """
    if directory.is_symlink():
        raise BadCheckpoint(f"{directory.name} is a link")
    commit = read_commit(directory)
    found, expected = set(fsops.names(directory)) - {COMMIT}, set(commit.files)
    for name in sorted(found ^ expected):
        raise BadCheckpoint(f"{name} is {'missing' if name in expected else 'not of this checkpoint'}")
    for name, want in sorted(commit.files.items()):
        path = directory / name
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BadCheckpoint(f"{name} is not a plain file")
        if status.st_size != want.size:
            raise BadCheckpoint(f"{name} has {status.st_size} bytes, not {want.size}")
        if hashed is None or name in hashed:
            try:
                have = fsops.checksum(path)
            except ValueError as error:
                raise BadCheckpoint(str(error)) from error
            if have != want:
                raise BadCheckpoint(f"{name} has sha256 {have.sha256[:16]}..., not {want.sha256[:16]}...")
    return commit


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
