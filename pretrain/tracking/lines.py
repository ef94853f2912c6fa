"""JSON lines on disk: appended whole, read past a torn end, cut back by one rename.

A process that is killed in the middle of a write leaves at most one torn last line. Readers stop before it, and whoever
opens the file to append removes it first, so that the next line does not grow onto it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pretrain.engine import fsops

Record = dict[str, Any]


class LineFile:
    """A file of JSON lines that only grows. Each call of `append` is one write, handed to the kernel at once; what a
    full or broken disk refuses is kept, and written before anything newer."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        keep_lines(self.path, lambda record: True)
        self._file = open(self.path, "ab", buffering=0)
        self._waiting = b""

    def append(self, records: Iterable[Record]) -> None:
        """Writes the records, one line each; numbers that are not finite become null, as JSON has no word for them.
        Raises OSError where lines have to wait."""
        self._waiting += "".join(json.dumps(plain(record), allow_nan=False) + "\n" for record in records).encode()
        self._write()

    def sync(self) -> None:
        """Waits until the lines, also those kept, are on the disk. Raises OSError where they cannot be written."""
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; further calls are harmless."""
        self._file.close()

    def _write(self) -> None:
        while self._waiting:  # a raw write may be short, for example on a nearly full disk
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def read_lines(path: str | Path) -> list[Record]:
    """The records of path, oldest first, without a torn last line; none when the file does not exist."""
    return [record for record, _ in _parse(Path(path))]


def inspected_numbers(record: Record) -> Record:
    """The single numbers that an inspection has of each thing it looked at, as THING_NAME: followed as curves."""
    things = {thing: values for thing, values in record.items() if isinstance(values, dict)}
    return {
        f"{thing}_{name}": value
        for thing, values in things.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def keep_lines(path: str | Path, keep: Callable[[Record], bool]) -> int:
    """Drops the records for which keep is false, and a torn last line, by one atomic rename; how many lines went.

    After a resume at a step:
        keep_lines(run_dir / "ledger.jsonl", lambda record: record["step"] <= step)
    """
    path = Path(path)
    if not path.exists():
        return 0
    size, kept, num_dropped, num_bytes = path.stat().st_size, [], 0, 0
    for record, line in _parse(path):
        if keep(record):
            kept.append(line)
            num_bytes += len(line)
        else:
            num_dropped += 1
    if num_bytes == size:
        return 0
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    fsops.rename(temporary, path)  # with its name flushed, or lines added later could be flushed to a file that is lost
    return max(num_dropped, 1)


def plain(value: Any) -> Any:
    """value with tensors and numpy scalars as Python numbers, paths as text, and no number that is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(path: Path) -> Iterable[tuple[Record, bytes]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # blocks that a lost machine never wrote read back as zeros
                record = None
            if isinstance(record, dict):
                yield record, line
