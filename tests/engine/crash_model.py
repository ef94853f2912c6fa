"""What a disk may hold after the power went: a model of a file system that keeps only what was flushed.

A Recorder watches this process through the interpreter's audit events and os.fsync, so it sees every name and every
flush, whoever makes it, and not only what is said to be made. From its record a Disk gives the states that may be found
afterwards, by these rules: data not flushed is absent, cut short or torn by blocks of 4 KiB; a change of a directory's
names not flushed may be there or not, each by itself; what was flushed is there."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 4096


@dataclass(eq=False)
class File:
    """Content as it is, and as it was when last flushed."""

    live: bytes = b""
    flushed: bytes = b""


@dataclass(eq=False)
class Folder:
    """Names as they are, as they were when last flushed, and the changes since."""

    live: dict[str, Any] = field(default_factory=dict)
    flushed: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[str, str, Any]] = field(default_factory=list)  # (name that goes or "", name that comes, what)


@dataclass(frozen=True)
class Event:
    """One operation, with the contents of all files just before it."""

    name: str  # open, truncate, rename, remove, mkdir, symlink, fsync, or mark
    paths: tuple[str, ...]
    before: dict[str, bytes]


class Recorder:
    """Notes what this process does below root. An audit hook stays for good: use it in a process that ends."""

    def __init__(self, root: Path) -> None:
        self.events: list[Event] = []
        self.on = True
        self._root = f"{os.path.realpath(root)}/"
        self._fsync = os.fsync
        os.fsync = self._flush
        sys.addaudithook(self._hear)

    def mark(self, text: str) -> None:
        """Notes something that was promised by now."""
        self._note("mark", text)

    def _hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if name == "open" and isinstance(arguments[0], str) and int(arguments[2] or 0) & (os.O_CREAT | os.O_TRUNC):
            self._note("truncate" if int(arguments[2]) & os.O_TRUNC else "open", self._path(arguments[0]))
        elif name == "os.rename":
            self._note("rename", self._path(arguments[0], arguments[2]), self._path(arguments[1], arguments[3]))
        elif name in ("os.remove", "os.rmdir"):
            self._note("remove", self._path(arguments[0], arguments[1]))
        elif name == "os.mkdir":
            self._note("mkdir", self._path(arguments[0], arguments[2]))
        elif name == "os.symlink":
            self._note("symlink", str(arguments[0]), self._path(arguments[1], arguments[2]))

    def _flush(self, fd: int) -> None:
        if self.on:
            self._note("fsync", os.readlink(f"/proc/self/fd/{fd}"))
        self._fsync(fd)

    def _path(self, path: Any, folder: int = -1) -> str:
        text = os.fsdecode(path)
        start = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else os.getcwd()
        return os.path.normpath(os.path.join(start, text))

    def _note(self, name: str, *paths: str) -> None:
        if name == "mark" or f"{paths[-1]}/".startswith(self._root):
            self.on = False
            inside = tuple(f"{path}/".removeprefix(self._root).rstrip("/") for path in paths)
            self.events.append(Event(name, inside, contents(Path(self._root))))
            self.on = True


def contents(root: Path) -> dict[str, bytes]:
    """Every plain file below root by its relative name."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


class Disk:
    """Plays a record back, event by event; everything in it at the beginning counts as flushed."""

    def __init__(self) -> None:
        self.root = Folder()

    def play(self, event: Event) -> None:
        """One event; those that failed when they were made, such as the removal of what is not there, do nothing."""
        for name, data in event.before.items():
            found = self._find(name)
            assert isinstance(found, File), f"{name} was made without anybody noticing"
            found.live = data
        if event.name == "mark":
            return
        folder, name = self._place(event.paths[-1])
        if event.name == "fsync":
            self._flush(self._find(event.paths[0]))
        elif folder is None:
            return
        elif event.name in ("open", "truncate", "mkdir", "symlink") and name not in folder.live:
            made = {"symlink": lambda: event.paths[0], "mkdir": Folder}.get(event.name, File)
            _change(folder, "", name, made())
        elif event.name == "truncate":  # made anew in place: what was flushed may be gone as well
            folder.live[name].flushed = b""
        elif event.name == "remove" and name in folder.live:
            _change(folder, name, "", None)
        elif event.name == "rename":
            source, old = self._place(event.paths[0])
            assert source is folder, "the model knows renames inside one directory only"
            if old in folder.live:
                _change(folder, old, name, folder.live[old])

    def after_power_loss(self, rng: random.Random, boldness: float) -> dict[str, Any]:
        """One legal state: name -> bytes of a file, a link's target as text, or None for a directory. boldness is the
        share of what was not flushed that made it all the same."""
        found: dict[str, Any] = {}
        _survive(self.root, "", rng, boldness, found)
        return found

    def _flush(self, node: Any) -> None:
        if isinstance(node, File):
            node.flushed = node.live
        elif isinstance(node, Folder):
            node.flushed, node.pending = dict(node.live), []

    def _place(self, path: str) -> tuple[Folder | None, str]:
        parent, _, name = path.rpartition("/")
        folder = self._find(parent)
        return (folder if isinstance(folder, Folder) else None), name

    def _find(self, path: str) -> Any:
        node: Any = self.root
        for part in path.split("/") if path else ():
            node = node.live.get(part) if isinstance(node, Folder) else None
        return node


def _change(folder: Folder, goes: str, comes: str, what: Any) -> None:
    folder.pending.append((goes, comes, what))
    _apply(folder.live, goes, comes, what)


def _apply(names: dict[str, Any], goes: str, comes: str, what: Any) -> None:
    if goes:
        names.pop(goes, None)
    if comes:
        names[comes] = what


def _survive(folder: Folder, prefix: str, rng: random.Random, boldness: float, found: dict[str, Any]) -> None:
    names = dict(folder.flushed)
    for change in folder.pending:
        if rng.random() < boldness:
            _apply(names, *change)
    for name, node in names.items():
        if isinstance(node, Folder):
            found[prefix + name] = None
            _survive(node, f"{prefix}{name}/", rng, boldness, found)
        else:
            found[prefix + name] = _survived(node, rng, boldness) if isinstance(node, File) else node


def _survived(file: File, rng: random.Random, boldness: float) -> bytes:
    """Flushed bytes, and of those behind them all, none, a beginning, or some blocks with zeros between."""
    if file.live == file.flushed or not file.live.startswith(file.flushed):
        return file.flushed
    rest, way = bytearray(file.live[len(file.flushed) :]), rng.random()
    if way >= boldness:
        return file.flushed
    if way < boldness / 3:
        del rest[rng.randrange(len(rest) + 1) :]
    elif way < 2 * boldness / 3:
        for at in range(0, len(rest), BLOCK):
            if rng.random() < 0.5:
                rest[at : at + BLOCK] = bytes(len(rest[at : at + BLOCK]))
    return file.flushed + bytes(rest)
