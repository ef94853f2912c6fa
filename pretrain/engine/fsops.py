"""Every byte and name of a checkpoint goes to the file system through here: tests can see, record and stop each one.

`HOOK.at` is called before and after each operation with its name and path; outside of tests it is None. Data is flushed
to the disk before its name is: a file, then its directory, then the rename that publishes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Bytes = bytes | memoryview


@dataclass
class Hook:
    """A test's hand on the operations; what it raises, the operation raises."""

    at: Callable[[str, Path], None] | None = None


HOOK = Hook()


@dataclass(frozen=True)
class FileSum:
    """What a file must be: its size in bytes and sha256 in hex."""

    size: int
    sha256: str


def write(path: Path, chunks: Iterable[Bytes]) -> FileSum:
    """Writes a new file and flushes it to the disk; an existing one is an error."""
    size, digest = 0, hashlib.sha256()
    _before("write", path)
    with open(path, "xb") as file:
        for chunk in chunks:
            _before("chunk", path)
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk) if isinstance(chunk, bytes) else chunk.nbytes
        file.flush()
        _before("fsync", path)
        os.fsync(file.fileno())
    _after("write", path)
    return FileSum(size, digest.hexdigest())


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file and flushes it to the disk, with its name where the file is new."""
    _before("append", path)
    is_new = not path.exists()
    with open(path, "a", encoding="ascii") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    _after("append", path)
    if is_new:
        fsync_dir(path.parent)


def checksum(path: Path) -> FileSum:
    """Size and hash of a plain file; a link, device or directory is a ValueError."""
    _before("read", path)
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is not a plain file")
    size, digest = 0, hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            size += len(chunk)
    return FileSum(size, digest.hexdigest())


def read(path: Path) -> bytes:
    """The whole of a small plain file."""
    _before("read", path)
    if path.is_symlink():
        raise ValueError(f"{path} is a link")
    return path.read_bytes()


def names(path: Path) -> list[str]:
    """Sorted names in a directory; empty where there is none."""
    try:
        return sorted(entry.name for entry in os.scandir(path))
    except FileNotFoundError:
        return []


def mkdir(path: Path) -> None:
    """Makes a directory and, where needed, its parents, and flushes the name of each one made."""
    _before("mkdir", path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    _after("mkdir", path)
    for folder in made:
        fsync_dir(folder.parent)


def fsync_dir(path: Path) -> None:
    """Flushes the names in a directory to the disk."""
    _before("fsync_dir", path)
    flush(path)
    _after("fsync_dir", path)


def flush(path: Path) -> None:
    """Waits until what a file holds, or the names in a directory, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(old: Path, new: Path) -> None:
    """Renames at once and flushes the directory; whoever looks sees the old name or the new one."""
    _before("rename", new)
    os.rename(old, new)
    _after("rename", new)
    fsync_dir(new.parent)


def replace(path: Path, text: str) -> None:
    """Gives a small file this content at once: whoever looks, after a kill as well, sees the old content or the new."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)  # of a kill
    write(fresh, [text.encode()])
    rename(fresh, path)


def point_link(link: Path, target: str) -> None:
    """Makes link a symbolic link to target, replacing the one there at once."""
    _before("link", link)
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)
    _after("link", link)


def remove_tree(path: Path) -> None:
    """Deletes a directory with all in it; one that is gone is fine."""
    _before("remove", path)
    shutil.rmtree(path, ignore_errors=True)
    _after("remove", path)


def free_bytes(path: Path) -> int:
    """Bytes a file could still take on path's file system."""
    _before("statvfs", path)
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _before(operation: str, path: Path) -> None:
    if HOOK.at is not None:
        HOOK.at(f"before {operation}", path)


def _after(operation: str, path: Path) -> None:
    if HOOK.at is not None:
        HOOK.at(f"after {operation}", path)
