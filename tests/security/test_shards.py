"""Shards from strangers: whatever is in a tar, its index or its name, no command runs it or writes by its names."""

from __future__ import annotations

import gc
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from launch.cli import main
from pretrain.data import index_file, shards
from pretrain.data.decode import BadImage, decode
from pretrain.data.index_file import Entry, Sample
from pretrain.data.shards import BadBytes, open_shards
from pretrain.data.tar_index import build_index
from pretrain.data.tar_members import BrokenShard, TarReader
from pretrain.errors import ConfigError, DataError
from tests import chaos
from tests.data.shard_files import jpeg, samples, write
from tests.security import doors, payloads
from tests.zygote import shared

TRAIN = "tests/security/test_shards.py:train"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that must not be made, in an environment where webdataset and Pillow would be told to make it."""
    path = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    _stub_ghostscript(tmp_path / "bin", path)
    for name, value in _environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return path


def train(_place: object, environment: dict[str, str], overrides: list[str]) -> None:
    """What a forked rank does."""
    os.environ.update(environment)
    raise SystemExit(main(["train", "configs/tiny_cpu.py", *overrides]))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_pillow_do_run_what_is_refused_here(canary: Path) -> None:
    ways: list[Callable[[], object]] = [
        lambda: list(wds.WebDataset(f"pipe:touch {canary}", shardshuffle=False)),
        lambda: wds.gopen("anywhere.tar").read(),  # rewritten by the environment
        lambda: list(wds.WebDataset(str(_pickled(canary)), shardshuffle=False).decode()),
        lambda: Image.open(io.BytesIO(payloads.disguises(canary)["eps"])).load(),
        lambda: np.load(io.BytesIO(payloads.disguises(canary)["object array"]), allow_pickle=True),
    ]
    for number, run in enumerate(ways):
        try:
            run()
        except (OSError, ValueError, EOFError, tarfile.TarError):
            pass  # it has run all the same
        gc.collect()
        assert canary.exists(), number
        canary.unlink()


@pytest.mark.parametrize("pattern", payloads.LOCATIONS)
def test_a_location_that_is_no_path_or_https_is_refused_whatever_the_environment_says(
    canary: Path, pattern: str
) -> None:
    with pytest.raises(ConfigError):
        open_shards(pattern.format(canary=canary))
    assert main(["index", pattern.format(canary=canary)]) in (76, 78)  # a path of that name is not there
    assert not canary.exists()


def test_index_pack_and_train_run_nothing_of_a_tar_that_holds_everything(canary: Path) -> None:
    folder, packed = canary.parent / "evil", canary.parent / "packed"
    folder.mkdir()
    tar = payloads.shard(folder / "evil-0000.tar", canary)
    assert main(["index", f"{folder}/*.tar"]) == 0
    listed = [entry.key for entry in index_file.load(tar.with_name(tar.name + ".idx")).excluded]
    assert len(listed) == len(payloads.disguises(canary)) and all(key.startswith("no-") for key in listed)
    assert main(["pack", f"{folder}/*.tar", str(packed), "--shard-mb", "1"]) == 0
    assert sorted(path.name for path in canary.parent.iterdir()) == ["bin", "evil", "packed"]
    named = {"_info.json", ".pack.jsonl", "rejected.csv", "manifest.json", "train-000000.tar", "train-000000.tar.idx"}
    assert {str(path.relative_to(packed)) for path in packed.rglob("*")} == named
    tar.with_name(tar.name + ".idx").write_bytes(doors.hostile_index(tar))  # now every member is an image
    (folder / "manifest.json").unlink()
    settings = chaos.overrides(canary.parent / "run", f"{folder}/*.tar", steps=6, stage=1, workers=2)
    environment = _environment(canary.parent)
    (outcome,) = shared().run(TRAIN, 1, {"environment": environment, "overrides": settings})
    assert outcome.code == 0, outcome.output[-3000:]
    reasons = [json.loads(line)["reason"] for line in (canary.parent / "run" / "ledger.jsonl").read_text().splitlines()]
    assert len(reasons) > 30 and any("EPS" in reason for reason in reasons), "they were met, and each kept its slot"
    assert not canary.exists()


@pytest.mark.parametrize("name", payloads.disguises(Path("x")))
def test_a_disguised_picture_is_a_bad_image_whatever_it_is_called(canary: Path, name: str) -> None:
    with pytest.raises(BadImage):
        decode(payloads.disguises(canary)[name])
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["a\x00b.jpg", "a\x7fb.jpg", "a\x9b2Jb.jpg", "a\rb.jpg", "/a.jpg", "a/../../b.jpg", "n" * 252 + ".jpg"]
)
def test_names_that_hide_something_are_refused_by_the_index(tmp_path: Path, name: str) -> None:
    entry = tarfile.TarInfo("x.jpg")
    entry.pax_headers = {"path": name}
    path = write(tmp_path / "x.tar", [(entry, jpeg(0))], tarfile.PAX_FORMAT)
    with pytest.raises(BrokenShard, match="is not safe"):
        build_index(path)


def test_members_are_limited_in_size_and_number_before_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", samples(4))
    assert len(list(TarReader(path, max_members=8).members())) == 8
    with pytest.raises(BrokenShard, match=r"number 8, .* 7 members a shard are the limit"):
        list(TarReader(path, max_members=7).members())
    entry = tarfile.TarInfo("big.jpg")
    entry.size = (256 << 20) + 1
    path.write_bytes(entry.tobuf() + bytes(1024))
    with pytest.raises(BrokenShard, match=r"256 MiB a member and 1000000 members a shard are the limit"):
        build_index(path)
    entry = tarfile.TarInfo("x.jpg")
    entry.pax_headers = {"size": "9" * 5000}
    path.write_bytes(entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(BrokenShard, match="size is no number"):
        build_index(path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([Entry("jpg", 1 << 62, 4, 0)], "points outside"),
        ([Entry("jpg", 512, (1 << 32) - 1, 0)], "points outside"),
        ([Entry("jpg", (1 << 64) - 1, 1, 0)], "points outside"),
        ([], "points outside"),
    ],
)
def test_an_index_that_points_outside_of_its_shard_is_refused(tmp_path: Path, entries: list[Entry], said: str) -> None:
    path = write(tmp_path / "x.tar", samples(2))
    size, sha256 = path.stat().st_size, TarReader(path).sha256
    content = index_file.build([Sample("a", 0, tuple(entries))], [], bytes=size, sha256=sha256, verify="header")
    path.with_name("x.tar.idx").write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_shards(str(path))


def test_a_sample_of_more_bytes_than_a_read_may_have_is_bad_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_shards(str(write(tmp_path / "x.tar", samples(2))))
    assert opened.read(0, 1)["jpg"] == jpeg(1)
    monkeypatch.setattr(shards, "MAX_SAMPLE", 100)
    with pytest.raises(BadBytes, match="at most 100 are read"):
        opened.read(0, 1)


def test_pixels_are_limited_by_the_header_before_any_is_decoded() -> None:
    assert decode(jpeg(0, (20, 24)), max_pixels=480).shape == (20, 24, 3)
    with pytest.raises(BadImage, match="24x20, more than 479 pixels"):
        decode(jpeg(0, (20, 24)), max_pixels=479)


def _pickled(canary: Path) -> Path:
    return write(canary.parent / "pickled.tar", [("a.pkl", payloads.pickles(canary)["system"])])


def _environment(folder: Path) -> dict[str, str]:
    told = {name: value.format(canary=folder / "canary") for name, value in doors.ENVIRONMENT.items()}
    return told | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def _stub_ghostscript(folder: Path, canary: Path) -> None:
    folder.mkdir()
    for name in ("gs", "gswin64c", "rsvg-convert", "curl", "gsutil", "ais"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (folder / name).chmod(0o755)
