"""Passes hostile files through the doors of the product in a forked process, which watches what it does.

Beside the canary, an audit hook counts every start of a program, every call of Python's own unpickler and every
connection: a mutated payload may run and miss the canary."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.config import read_config
from pretrain.data import index_file
from pretrain.data.boxes import BadBoxes, read_boxes
from pretrain.data.decode import BadImage, decode
from pretrain.data.index_file import Entry, Sample
from pretrain.data.shards import BadBytes, ShardSet, open_shards
from pretrain.data.tar_members import TarReader
from pretrain.engine.published import read_newest
from pretrain.errors import LacunaError
from pretrain.weights_file import read_state
from tests.security import payloads

BATCH = 500
REFUSALS = (LacunaError, BadImage, BadBoxes, BadBytes)
EVENTS = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen",
    "socket.connect", "pickle.find_class", "shutil.rmtree", "os.kill", "ctypes.dlopen",
}  # fmt: skip
_OPCODES = b"(.0125aFGIJKLMNRSTUVX]abcdeghijklmnopqrstu}\x80\x81\x85\x86\x87\x8c\x8e\x93\x94\x95"
ENVIRONMENT = {  # what webdataset reads where it opens
    "EVIL": "pipe:touch {canary}", "WDS_EVIL": "pipe:touch {canary}", "USE_AIS_FOR": "s3:gs:https:file",
    "GOPEN_REWRITE": "=pipe:touch {canary} ", "GOPEN_VERBOSE": "1",
}  # fmt: skip


def all_payloads(folder: Path) -> Counter[str]:
    """Every payload once."""
    return _watched(_all_payloads, folder)


def mutants(folder: Path, first: int, number: int) -> Counter[str]:
    """Mutated pickles number first, first + 1, ...: each is the same in every campaign."""
    return _watched(_mutants, folder, first, number)


def hostile_index(path: Path) -> bytes:
    """An index that lists every member of a tar as the image of a sample of its own, and says that it was decoded."""
    reader = TarReader(path)
    listed = []
    for number, (member, content) in enumerate(reader.members()):
        entry = Entry("jpg", member.offset, member.size, zlib.crc32(content))
        listed.append(Sample(f"{number:04d} {member.name}", -1, (entry,)))
    return index_file.build(listed, [], bytes=reader.bytes, sha256=reader.sha256, verify="decode")


def read_everything(shards: ShardSet, see: Callable[[Callable[[], Any]], None]) -> None:
    """Decodes every sample, and reads boxes from whatever it has."""
    for shard, length in enumerate(shards.lengths.tolist()):
        for number in range(length):
            sample = shards.read(shard, number)
            for name, content in sample.items():
                if not name.startswith("__"):
                    see(partial(decode, content))
                    see(partial(read_boxes, content))


class _Door:
    """Counts what became of each payload."""

    def __init__(self, canary: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._canary = canary

    def see(self, action: Callable[[], Any], kind: str = "pocs") -> None:
        """Passes one through."""
        self.counts[kind] += 1
        try:
            action()
            self.counts["accepted"] += 1
        except REFUSALS:
            self.counts["refused"] += 1
        except Exception:
            self.counts["unexpected"] += 1
            traceback.print_exc()
        if self._canary.exists():
            self.counts["executed"] += 1
            self._canary.unlink()


def _all_payloads(folder: Path) -> Counter[str]:
    canary = folder / "canary"
    door = _Door(canary)
    os.chdir(folder)
    os.environ.update({name: value.format(canary=canary) for name, value in ENVIRONMENT.items()})
    for pattern in payloads.LOCATIONS:
        door.see(partial(open_shards, pattern.format(canary=canary)))
    for path in payloads.weights(folder / "weights", canary).values():
        door.see(partial(read_state, path))
    for number, text in enumerate(payloads.configs().values()):
        place = folder / f"{number}.json"
        place.write_text(text)
        door.see(partial(read_config, place))
    for number, content in enumerate(payloads.disguises(canary).values()):
        run = payloads.run(folder / f"run-{number}", content)
        door.see(partial(read_newest, run))
        door.see(partial(decode, content))
    tar = payloads.shard(folder / "evil.tar", canary)
    read_everything(open_shards(str(tar), verify="decode"), door.see)
    (folder / "evil.tar.idx").write_bytes(hostile_index(tar))
    read_everything(open_shards(str(tar)), door.see)
    return door.counts


def _mutants(folder: Path, first: int, number: int) -> Counter[str]:
    canary = folder / "canary"
    door = _Door(canary)
    files = [path.read_bytes() for path in payloads.weights(folder / "weights", canary).values()]
    evil = [*payloads.pickles(canary).values(), *(content for content in files if len(content) < 9_999)]
    good = payloads.harmless()
    for seed in range(first, first + number):
        rng = random.Random(seed)
        content = mutate(rng.choice(rng.choice([evil, good])), evil, rng)
        path = folder / ("mutant" + rng.choice([".pt", ".pt", ".pt", ".bin", ".safetensors"]))
        if rng.random() < 0.6:
            payloads.archive(path, content)
        else:
            path.write_bytes(content)
        door.see(partial(read_state, path), "fuzzed_pickles")
    return door.counts


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """content after one to six changes: bytes flipped, opcodes put in, parts cut, doubled or taken from others."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at, size = rng.randrange(len(data) + 1), rng.randint(1, 24)
        change = rng.randrange(5)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at:at] = bytes([rng.choice(_OPCODES)])
        elif change == 2:
            del data[at : at + size]
        elif change == 3:
            data[at:at] = data[max(0, at - size) : at]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at:at] = other[start : start + rng.randint(1, 200)]
    return bytes(data)


def _watched(work: Callable[..., Counter[str]], folder: Path, *more: Any) -> Counter[str]:
    """What work(folder, *more) counts in a forked process, and what the process did that no payload may make it do."""
    folder.mkdir(parents=True, exist_ok=True)
    answer, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, told, folder, *more)
    os.close(told)
    with os.fdopen(answer, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if not said or status:
        return Counter(crashed=1)
    return Counter(json.loads(said))


def _child(work: Callable[..., Counter[str]], told: int, folder: Path, *more: Any) -> None:
    seen: list[str] = []
    code = 1
    try:
        signal.alarm(300)
        warnings.simplefilter("ignore")
        sys.addaudithook(lambda event, _: seen.append(event) if event in EVENTS else None)
        counts = work(folder, *more)
        counts["executed"] += len(seen)
        if seen:
            print("seen:", seen[:20], file=sys.stderr)
        os.write(told, json.dumps(counts).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
