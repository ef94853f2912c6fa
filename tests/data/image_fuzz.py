"""Damaged images through the real decoder, and through real shards and the real loader: goal G8."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path

from PIL import Image

from pretrain.data.loader import build_loader
from pretrain.data.settings import DataConfig
from pretrain.data.shards import ShardSet, open_shards
from tests.campaign import Counts, counted
from tests.data.image_damage import damaged, sources
from tests.data.shard_files import write

ROOT = Path(__file__).resolve().parents[2]
LARGE_MB = 512


def decoder_campaign(number: int, first: int = 0, planted: bool = False) -> Counts:
    """Each case, in a process of its own so that a crash is counted and not suffered, is decoded or refused by
    BadImage; a crash, another exception, a slow or a large decode is a failure.
    Time is the processor's, so that a busy machine changes nothing. planted spoils three cases, for a test of this."""
    failures, total, at = [], {"decoded": 0, "refused": 0, "worst_cpu_s": 0.0, "worst_rss_mb": 0}, first
    with tempfile.NamedTemporaryFile() as progress:
        while at < first + number:
            arguments = [str(at), str(first + number), progress.name, "planted" * planted]
            code = subprocess.run([sys.executable, "-m", "tests.data.image_damage", *arguments], cwd=ROOT).returncode
            said = json.loads(Path(progress.name).read_text())
            for name in total:
                total[name] = max(total[name], said[name]) if name.startswith("worst") else total[name] + said[name]
            failures += said["failures"]
            if code:
                failures.append(f"case {said['case']}: ended by {f'signal {-code}' if code < 0 else f'code {code}'}")
            at = said["case"] + 1
    if total["worst_rss_mb"] >= LARGE_MB:
        failures.append(f"{total['worst_rss_mb']} MB of memory")
    return counted(number, failures, **total)


def ledger_campaign(number: int, first: int = 0) -> Counts:
    """One shard a call: some images damaged before it was indexed, some after, some not at all; then one epoch of it.

    What is delivered must be what Pillow alone can read and nobody touched since; all else must be in the ledger or
    have been left out, with its reason, when the shard was indexed."""
    images = [_for_a_shard(case) for case in range(first, first + number)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        names = [f"{place:05d}" for place in range(number)]
        write(path, [member for n, data in zip(names, images) for member in ((f"{n}.cls", b"1"), (f"{n}.jpg", data))])
        shards = open_shards(str(path))
        left_out = {entry.key for entry in shards.index(0).excluded}
        touched = _touch(path, shards, random.Random(first))
        delivered, ledger = _epoch(shards)
    failures = []
    expected = {True: ["delivered"], False: ["ledger", "left out"], None: ["delivered", "ledger"]}
    for name, data in zip(names, images):
        places = {"delivered": delivered, "ledger": ledger, "left out": left_out}
        where = [place for place, keys in places.items() if name in keys]
        right = ["ledger"] if name in touched else expected[by_pillow(data)]
        if len(where) != 1 or where[0] not in right:
            failures.append(f"shard of case {first}, sample {name}: {where}, not {' or '.join(right)}")
    return counted(number, failures, in_the_ledger=len(ledger), left_out=len(left_out), delivered=len(delivered))


def _for_a_shard(case: int) -> bytes:
    """Two of three damaged; arrays, which Pillow knows nothing of, left out."""
    data = damaged(case) if case % 3 else sources()[case % len(sources())]
    return sources()[0] if data[:6] == b"\x93NUMPY" else data


def by_pillow(data: bytes) -> bool | None:
    """Whether Pillow reads an image of ours from data. None for a JPEG without an end that it reads all the same: that
    is refused as cut short, unless libjpeg has another complaint first, and then taken as Pillow takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
                size = image.size
                readable = image.convert("RGB").size == size
                if readable and image.format == "JPEG" and b"\xff\xd9" not in data:
                    return None
                return readable and size[0] * size[1] <= max(4_000_000, 200 * len(data))
        except Exception:  # of whatever kind: it is Pillow's word that counts, not its reason
            return False


def _touch(path: Path, shards: ShardSet, rng: random.Random) -> set[str]:
    """Changes a byte of every fifth image or so behind the index's back; their keys."""
    touched, status = set(), path.stat()
    with open(path, "r+b") as file:
        for sample in range(int(shards.lengths[0])):
            if rng.randrange(5):
                continue
            entry = next(entry for entry in shards.index(0).members(sample) if entry.extension == "jpg")
            file.seek(entry.offset + rng.randrange(entry.size))
            old = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([old[0] ^ 1 << rng.randrange(8)]))
            touched.add(shards.key(0, sample))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return touched


def _epoch(shards: ShardSet) -> tuple[set[str], set[str]]:
    """Keys that one epoch delivers, and those it reports."""
    size = int(shards.lengths.sum())
    cfg = DataConfig(train="unused", image_size=(8, 8), batch_size=size, lanes=4, block=16, workers=1, timeout_s=300)
    loader = build_loader(shards, cfg, 3, rank=0, world=1, accumulation=1, start_step=0, device="cpu")
    try:
        (batch,) = islice(loader, 1)
    finally:
        loader.close()
    reported = {bad.key for bad in batch.bad}
    assert int(batch.weight.sum()) == size - len(reported)
    return {shards.key(0, sample) for sample in range(size)} - reported, reported
