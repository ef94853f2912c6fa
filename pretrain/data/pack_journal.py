"""What a pack has finished so far, a line a shard: killed at any moment and run again, it goes on behind the last."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pretrain.errors import ConfigError

NAME = ".pack.jsonl"


@dataclass(frozen=True)
class Finished:
    """One shard that is published, and what was seen on the way to its end."""

    name: str
    split: str
    bytes: int
    sha256: str
    samples: int
    index_sha256: str
    next: int  # the first image behind it, in the order of packing
    rejected: list[list[str]]  # name and reason
    sums: list[list[int]]  # of the train pixels looked at: their number, sum and sum of squares, for each channel


class Journal:
    """The journal of one folder. `finished` holds the shards that verify; `add` appends one, flushed to the disk."""

    def __init__(self, folder: Path, plan: str) -> None:
        self._folder, self._path, self._plan = folder, folder / NAME, plan
        self.finished: list[Finished] = []

    def __enter__(self) -> Journal:
        foreign = sorted(path.name for path in self._folder.glob("*.tar"))
        if foreign and not self._path.exists():
            raise ConfigError(
                f"{self._folder} holds {foreign[0]}, which lacuna pack did not write; use an empty folder"
            )
        self._file = self._path.open("a+b")
        try:
            self._go_on()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, shard: Finished) -> None:
        """Notes a shard that has just been published."""
        self.finished.append(shard)
        self._append(asdict(shard))

    def _go_on(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another lacuna pack is writing into {self._folder}; wait for it, or stop it") from error
        keep = self._read()
        self._file.truncate(keep)
        if keep == 0:
            self._append({"plan": self._plan})

    def _read(self) -> int:
        """Fills `finished`; gives the length of the journal up to the first line that is torn or does not verify."""
        self._file.seek(0)
        keep = 0
        for number, line in enumerate(self._file.readlines()):
            if not line.endswith(b"\n"):
                break  # torn by the kill
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                break
            if number == 0:
                if entry.get("plan") != self._plan:
                    raise ConfigError(
                        f"{self._folder} holds a pack of another source or with other settings; "
                        "give the same as before to go on with it, or use an empty folder"
                    )
            else:
                shard = Finished(**entry)
                if not _verifies(self._folder / shard.name, shard):
                    break
                self.finished.append(shard)
            keep += len(line)
        return keep

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _verifies(path: Path, shard: Finished) -> bool:
    """Whether a published shard and its index are still there, byte for byte."""
    if not path.exists() or path.stat().st_size != shard.bytes or not path.with_name(f"{path.name}.idx").exists():
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == shard.sha256
