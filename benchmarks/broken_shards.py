"""How many samples of 300 broken shards are lost or wrong without a word? Ours, and plain webdataset's, strict handler.

    python benchmarks/broken_shards.py            # writes benchmarks/results/broken_shards.json

Every case breaks one shard of 40 samples by a seed: flipped bits, cuts, zeroed blocks, zeroed or damaged headers,
members interleaved, keys repeated. Half are broken after they were indexed (bit rot in storage: time and size as
before), half before. An oracle that shares no code with us says what must come out: tarfile and plain loops.

After: each sample must come back with its first bytes, or be reported, and reported only where bytes changed.
Before: the shard must be refused, or give exactly what the oracle reads from the file as it is now. Nobody can know of
changed pixels that no checksum was made of, nor of a last sample that was zeroed with its header, which leaves a whole,
shorter archive; those are counted as `content_unknowable` and `loss_unknowable`, not hidden."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import random
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from pretrain.data.shards import BadBytes, BrokenShard, index_shard, open_shards
from pretrain.errors import DataError
from tests.campaign import Counts, counted

KINDS = ("bit", "bits", "cut", "cut_at_border", "zero_4k", "zero_header", "header_bit", "interleave", "repeat", "swap")
NUM_SAMPLES = 40
SILENT = ("silently_lost", "silently_wrong", "reported_without_cause")
Samples = dict[str, dict[str, bytes]]


@dataclass(frozen=True)
class Case:
    """One way to break one shard."""

    seed: int
    kind: str
    after: bool  # the index was built before the damage


def cases(number: int) -> list[Case]:
    """The first `number` cases; the same for ever. Structure (interleave, repeat) can only be broken before."""
    made = []
    for seed in range(number):
        kind = KINDS[seed % len(KINDS)]
        made.append(Case(seed, kind, seed // len(KINDS) % 2 == 0 and kind not in ("interleave", "repeat")))
    return made


def make_samples(rng: random.Random) -> Samples:
    """Small JPEGs of noise, with labels."""
    samples = {}
    for number in range(NUM_SAMPLES):
        pixels = np.frombuffer(rng.randbytes(24 * 20 * 3), np.uint8).reshape(24, 20, 3)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=rng.choice([75, 90]))
        samples[f"{number:04d}"] = {"cls": str(rng.randrange(10)).encode(), "jpg": out.getvalue()}
    return samples


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int) -> list[int]:
    """Writes members in this order, and gives the byte of each one's (first) header."""
    starts = []
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            starts.append(tar.offset)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # a fraction makes a pax record
            tar.addfile(entry, io.BytesIO(content))
    return starts


def members_of(samples: Samples) -> list[tuple[str, bytes]]:
    """The members of samples in the order of webdataset's writer."""
    return [(f"{key}.{ext}", content) for key, parts in samples.items() for ext, content in sorted(parts.items())]


def break_tar(path: Path, case: Case, rng: random.Random, samples: Samples, starts: list[int], form: int) -> None:
    """Damages the tar in place."""
    if case.kind in ("interleave", "repeat"):
        members = members_of(samples)
        at = rng.randrange(0, len(members) - 4, 2)
        if case.kind == "interleave":  # a.cls b.cls a.jpg b.jpg
            members[at : at + 4] = [members[at], members[at + 2], members[at + 1], members[at + 3]]
        else:
            to = rng.randrange(at + 2, len(members) + 1, 2)
            members[to:to] = members[at : at + 2]
        write_tar(path, members, form)
        return
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    start = rng.choice(starts)
    if case.kind in ("bit", "bits"):
        for _ in range(1 if case.kind == "bit" else 20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif case.kind == "cut":
        del data[at:]
    elif case.kind == "cut_at_border":
        del data[start:]
    elif case.kind == "zero_4k":
        at -= at % 512
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif case.kind == "zero_header":
        data[start : start + 512] = bytes(512)
    elif case.kind == "header_bit":
        data[start + rng.randrange(512)] ^= 1 << rng.randrange(8)
    elif case.kind == "swap":  # two equal pieces change places: sums over the whole would not see it
        first, second = sorted(rng.sample(range(0, len(data) - 512, 512), 2))
        data[first : first + 512], data[second : second + 512] = data[second : second + 512], data[first : first + 512]
    path.write_bytes(data)


def read_slowly(path: Path) -> Samples | None:
    """The oracle: every member that Python's tarfile sees, grouped by plain loops; None where the archive is damaged.

    tarfile itself stops silently at a bad header, so what it consumed is compared with the whole file."""
    data = path.read_bytes()
    found: Samples = {}
    end, last = 0, ""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=False) as tar:
            for member in tar:
                if not member.isreg():
                    return None
                key, _, extension = member.name.partition(".")
                if (key in found and key != last) or extension in found.get(key, {}):
                    return None  # interleaved or repeated
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
                last = key
                end = member.offset_data + (member.size + 511) // 512 * 512
    except (tarfile.TarError, EOFError):
        return None
    rest = data[end:]
    padded = -(-(end + 1024) // 10_240) * 10_240  # two empty blocks are the end; what fills the record holds nothing
    whole = end + 1024 <= len(data) <= padded and not rest.strip(b"\0")
    complete = all({"cls", "jpg"} <= parts.keys() for parts in list(found.values())[-1:])
    return found if whole and complete else None


def run_case(case: Case, folder: Path) -> Counter[str]:
    """Counts of what became of the samples of one case. Silent ones are what must not be."""
    rng = random.Random(case.seed)
    form = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[case.seed % 3]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "x.tar"
    samples = make_samples(rng)
    starts = write_tar(path, members_of(samples), form)
    if not case.after:
        break_tar(path, case, rng, samples, starts, form)
        return _judge_before(path, samples)
    index_shard(path)
    shards = open_shards(str(path))
    before, status = path.read_bytes(), path.stat()
    break_tar(path, case, rng, samples, starts, form)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # rot does not change the time of a file
    return _judge_after(path, shards, samples, before)


def _judge_after(path: Path, shards, samples: Samples, before: bytes) -> Counter[str]:  # type: ignore[no-untyped-def]
    now = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(before)) as tar:
        place = {member.name: member.offset_data for member in tar}
    counts: Counter[str] = Counter(after_cases=1)
    for number, (key, parts) in enumerate(samples.items()):
        at = {ext: place[f"{key}.{ext}"] for ext in parts}
        changed = any(now[at[ext] : at[ext] + len(content)] != content for ext, content in parts.items())
        try:
            sample = shards.read(0, number)
        except BadBytes:
            counts["reported" if changed else "reported_without_cause"] += 1
        except DataError:
            counts["refused_run"] += 1  # a size that changed: the attempt ends, nothing is skipped
        else:
            right = sample["__key__"] == key and all(sample[ext] == content for ext, content in parts.items())
            counts["right" if right else "silently_wrong"] += 1
    return counts


def _judge_before(path: Path, samples: Samples) -> Counter[str]:
    counts: Counter[str] = Counter(before_cases=1)
    truth = read_slowly(path)
    try:
        index = index_shard(path)
    except BrokenShard:
        return counts + Counter(refused_shards=1, refused_though_readable=int(truth is not None))
    except DataError:
        return counts + Counter(refused_shards=1)
    excluded = {entry.key for entry in index.excluded}
    if truth is None:
        return counts + Counter(silently_lost=len(samples))
    shards = open_shards(str(path))
    given = {shards.key(0, number): shards.read(0, number) for number in range(index.num_samples)}
    for key in samples.keys() | truth.keys() | given.keys():
        parts = {k: v for k, v in given.get(key, {}).items() if not k.startswith("__")}
        if key in excluded:
            right = key in truth and key not in given
            counts["excluded_and_listed" if right else "silently_wrong"] += 1
        elif key not in given:
            counts["silently_lost" if key in truth else "loss_unknowable"] += 1
        elif parts != truth.get(key):
            counts["silently_wrong"] += 1
        else:
            counts["right" if parts == samples.get(key) else "content_unknowable"] += 1
    return counts


def campaign(number: int, first: int = 0) -> Counts:
    """Goal G7: cases first to first + number - 1; a case fails where a sample is lost or wrong without a word."""
    counts: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(first + number)[first:]:
            found = run_case(case, Path(scratch) / "case")
            counts += found
            if any(found[name] for name in SILENT):
                failures.append(f"{case}: {dict(found)}")
    return counted(number, failures, **counts)


def webdataset_counts(case: Case, folder: Path) -> Counter[str]:
    """What plain webdataset makes of the same file, with the handler that raises at every error."""
    import webdataset as wds

    rng = random.Random(case.seed)
    form = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[case.seed % 3]
    path = folder / "y.tar"
    samples = make_samples(rng)
    starts = write_tar(path, members_of(samples), form)
    break_tar(path, case, rng, samples, starts, form)
    given: list[tuple[str, dict[str, bytes]]] = []
    raised = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the collector
        try:
            for sample in wds.WebDataset(str(path), shardshuffle=False, handler=wds.reraise_exception):
                given.append((sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}))
        except Exception:
            raised = True  # whatever it is, the user hears of it
        gc.collect()
    right = {key for key, parts in given if samples.get(key) == parts}
    loud = Counter(webdataset_raised=int(raised))
    if raised:
        return loud
    return loud + Counter(
        webdataset_silent_cases=int(len(right) < len(samples) or len(given) != len(samples)),
        webdataset_silently_lost_or_wrong=len(samples) - len(right),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "broken_shards.json")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(options.cases):
            total += run_case(case, Path(scratch) / "case")
            total += webdataset_counts(case, Path(scratch))
    silent = {name: total[name] for name in SILENT}
    result = {
        "command": f"python benchmarks/broken_shards.py --cases {options.cases}",
        "date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(), "seeds": f"0 to {options.cases - 1}",
        "seconds": round(time.perf_counter() - began, 1), "cases": options.cases,
        "samples_each": NUM_SAMPLES, **silent, "counts": dict(sorted(total.items())),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if any(silent.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
