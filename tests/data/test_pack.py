"""Packing: every source becomes valid shards that plain webdataset reads too; interrupted or not, the same bytes."""

import csv
import gc
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from pretrain.data.decode import decode
from pretrain.data.pack import pack
from pretrain.data.shards import open_shards
from pretrain.errors import ConfigError
from tests.data.shard_files import jpeg, samples, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photos(tmp_path):
    """Two class folders of ten images, and what no folder is without."""
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            path = root / name / "deep" / f"photo {number}.v1.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(100 * label + number, (40, 60)))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / ".DS_Store.jpg").write_bytes(b"hidden")
    (root / "cat" / "half.jpg").write_bytes(jpeg(5)[:-40])
    (root / "dog" / "page.png").write_bytes(b"<html>")
    (root / "dog" / "really.jpg").write_bytes(jpeg(7, kind="PNG"))
    return root


def contents(out, split="train"):
    """name -> (label, image bytes, extension) of all samples."""
    shards = open_shards(str(out / f"{split}-*.tar"), index_missing=False)
    found = {}
    for shard, length in enumerate(shards.lengths.tolist()):
        for number in range(length):
            sample = shards.read(shard, number)
            extension = next(name for name in sample if name in ("jpg", "png", "webp"))
            name = json.loads(sample["json"])["name"]
            assert name not in found
            found[name] = (int(sample["cls"]) if "cls" in sample else None, sample[extension], extension)
    return found


def fingerprint(out):
    """sha256 of every file of a pack by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def test_class_folders_become_labels_and_images_keep_their_bytes(photos, tmp_path):
    seen = []
    report = pack(photos, tmp_path / "out", shard_mb=0.01, on_progress=lambda done, total: seen.append((done, total)))
    assert report.samples == {"train": 21}
    assert report.classes == ["cat", "dog"]
    assert len(report.shards["train"]) > 2
    assert seen == [(done, 23) for done in range(1, 24)]
    found = contents(tmp_path / "out")
    assert found["dog/deep/photo 3.v1.jpg"] == (1, jpeg(103, (40, 60)), "jpg")
    assert found["dog/really.jpg"] == (1, jpeg(7, kind="PNG"), "png")  # named by what it is
    with (tmp_path / "out" / "rejected.csv").open() as file:
        assert {row["name"]: row["reason"] for row in csv.DictReader(file)}.keys() == {"cat/half.jpg", "dog/page.png"}
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {"classes": ["cat", "dog"]}
    assert "21 images" in str(report)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the collector
def test_webdataset_and_timm_read_what_was_packed(photos, tmp_path):
    pack(photos, tmp_path / "out", shard_mb=0.01)
    info = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]["train"]
    urls = [str(tmp_path / "out" / name) for name in info["filenames"]]
    streamed = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()
    assert len(streamed) == info["num_samples"] == sum(info["shard_lengths"]) == 21
    assert {json.loads(s["json"])["name"]: int(s["cls"]) for s in streamed} == {
        name: label for name, (label, _, _) in contents(tmp_path / "out").items()
    }
    assert len({sample["__key__"] for sample in streamed}) == 21


def test_the_order_is_shuffled_by_the_seed_alone(photos, tmp_path):
    names = {}
    for run, options in {"a": {"workers": 1}, "b": {"workers": 3}, "c": {"seed": 1}}.items():
        pack(photos, tmp_path / run, **options)
        names[run] = list(contents(tmp_path / run))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert names["a"] != names["c"]
    assert names["a"] != sorted(names["a"])


def test_a_share_is_held_out_by_name(photos, tmp_path):
    report = pack(photos, tmp_path / "out", val_share=0.3)
    train, val = contents(tmp_path / "out"), contents(tmp_path / "out", "val")
    assert report.samples == {"train": len(train), "val": len(val)}
    assert len(val) > 1
    assert not train.keys() & val.keys()
    (photos / "dog" / "new.jpg").write_bytes(jpeg(55))
    pack(photos, tmp_path / "more", val_share=0.3)
    assert contents(tmp_path / "more", "val").keys() - {"dog/new.jpg"} == val.keys()  # nobody changes sides


def test_a_list_gives_paths_and_labels(photos, tmp_path):
    (photos / "list.txt").write_text(
        "# a comment\ncat/deep/photo 1.v1.jpg\tred\n\ndog/deep/photo 2.v1.jpg\tblue\ndog/gone.jpg\tred\n"
    )
    report = pack(photos / "list.txt", tmp_path / "out")
    assert report.classes == ["blue", "red"]
    found = contents(tmp_path / "out")
    assert {name: label for name, (label, _, _) in found.items()} == {
        "cat/deep/photo 1.v1.jpg": 1, "dog/deep/photo 2.v1.jpg": 0,
    }  # fmt: skip
    assert report.rejected == 1
    (photos / "plain.txt").write_text("cat/deep/photo 1.v1.jpg 7\ncat/deep/photo 2.v1.jpg\n")
    pack(photos / "plain.txt", tmp_path / "plain")
    assert [label for label, _, _ in sorted(contents(tmp_path / "plain").values(), key=str)] == [7, None]


def test_a_folder_without_classes_has_no_labels(photos, tmp_path):
    pack(photos / "cat", tmp_path / "out")
    assert {label for label, _, _ in contents(tmp_path / "out").values()} == {None}
    assert not (tmp_path / "out" / "classes.json").exists()


def test_shards_are_packed_anew(tmp_path):
    write(tmp_path / "old-0.tar", samples(8))
    write(tmp_path / "old-1.tar", samples(8, first=8))
    for number, source in enumerate((str(tmp_path / "old-{0..1}.tar"), tmp_path)):
        pack(source, tmp_path / f"out{number}")
        found = contents(tmp_path / f"out{number}")
        want = {f"old-{n // 8}.tar/{n:05d}": (n % 10, jpeg(n), "jpg") for n in range(16)}
        assert found == want


def test_larger_images_are_made_smaller_and_smaller_ones_left_alone(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    smooth = np.linspace(0, 255, 90 * 160 * 3).reshape(90, 160, 3).astype(np.uint8)
    Image.fromarray(smooth).save(root / "large.png")
    (root / "small.jpg").write_bytes(jpeg(1))
    pack(root, tmp_path / "out", size_px=45)
    found = contents(tmp_path / "out")
    assert found["small.jpg"][1] == jpeg(1)
    assert found["large.png"][2] == "jpg"
    pixels = decode(found["large.png"][1])
    assert pixels.shape == (45, 80, 3)
    assert abs(pixels.astype(float).mean() - smooth.mean()) < 2
    pack(root, tmp_path / "full", size_px=45, full_chroma=True)
    sampling = Image.open(io.BytesIO(contents(tmp_path / "full")["large.png"][1])).layer
    assert {layer[1:3] for layer in sampling} == {(1, 1)}


def boxes_of(out):
    """name -> the list "boxes" of all samples' jsons, None where there is none."""
    shards = open_shards(str(out / "train-*.tar"), index_missing=False)
    every = (json.loads(shards.read(0, number)["json"]) for number in range(shards.num_samples))
    return {about["name"].rpartition("/")[2]: about.get("boxes") for about in every}


def test_boxes_of_tars_are_kept_and_scaled_with_their_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 wide and 80 high, shown 80 wide and 40 high
    turned = io.BytesIO()
    Image.open(io.BytesIO(jpeg(4, (80, 40)))).save(turned, "JPEG", exif=exif)
    jsons = {
        "0": (jpeg(0, (40, 81)), b'{"boxes": [[10, 10, 81, 40.5]], "width": 81, "caption": "x"}'),
        "1": (jpeg(1, (20, 30)), b'{"boxes": [[1, 2, 3, 4], [0.125, 0, 1, 1]]}'),  # small enough as it is
        "2": (jpeg(2, (40, 80)), b'{"boxes": []}'),
        "3": (jpeg(3, (40, 80)), b"no json, and no boxes"),
        "4": (turned.getvalue(), b'{"boxes": [[8, 4, 80, 40]]}'),
        "5": (jpeg(5, (40, 80)), b'{"boxes": [[1, 2, 3]]}'),
    }
    write(tmp_path / "s.tar", [m for k, (i, j) in jsons.items() for m in ((f"{k}.jpg", i), (f"{k}.json", j))])
    pack(tmp_path / "s.tar", tmp_path / "same")
    assert boxes_of(tmp_path / "same") == {
        "0": [[10, 10, 81, 40.5]], "1": [[1, 2, 3, 4], [0.125, 0, 1, 1]], "2": [], "3": None, "4": [[8, 4, 80, 40]],
    }  # fmt: skip
    report = pack(tmp_path / "s.tar", tmp_path / "small", size_px=20)
    found = boxes_of(tmp_path / "small")
    assert found["0"] == [[pytest.approx(10 * 40 / 81, rel=1e-5), 5, 40, 20.25]]  # 81 x 40 becomes 40 x 20
    assert found["1"] == [[1, 2, 3, 4], [0.125, 0, 1, 1]] and found["2"] == [] and found["3"] is None
    assert found["4"] == [[4, 2, 40, 20]]  # shown 80 x 40 becomes 40 x 20
    assert report.rejected == 1
    assert "box 1 of its json, [1, 2, 3], is not" in (tmp_path / "small" / "rejected.csv").read_text()


def test_mean_and_std_are_those_of_the_train_pixels(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    pictures = [np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8) // (n + 1) for n in range(3)]
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(root / f"{number}.png")
    report = pack(root, tmp_path / "out")
    every = np.concatenate([pixels.reshape(-1, 3) for pixels in pictures]) / 255
    assert np.allclose(report.mean, every.mean(0), atol=1e-5)
    assert np.allclose(report.std, every.std(0), atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["mean"] == list(report.mean)


def test_a_pack_that_is_run_again_does_nothing_and_repairs_what_is_gone(photos, tmp_path):
    out = tmp_path / "out"
    report = pack(photos, out, shard_mb=0.01)
    before = fingerprint(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert pack(photos, out, shard_mb=0.01) == report
    assert times == {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "train-000001.tar").write_bytes(b"damaged")
    assert pack(photos, out, shard_mb=0.01) == report
    assert fingerprint(out) == before


def test_a_folder_of_something_else_is_not_written_to(photos, tmp_path):
    out = tmp_path / "out"
    pack(photos, out)
    with pytest.raises(ConfigError, match="other settings"):
        pack(photos, out, seed=3)
    (photos / "dog" / "deep" / "photo 1.v1.jpg").write_bytes(jpeg(9))
    with pytest.raises(ConfigError, match="another source"):
        pack(photos, out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write(foreign / "train-000000.tar", samples(2))
    with pytest.raises(ConfigError, match="did not write"):
        pack(photos, foreign)


def test_sources_and_settings_that_cannot_be_meant_are_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"x")
    for source in (tmp_path / "empty", tmp_path / "file.bin", tmp_path / "gone", tmp_path / "gone.txt", "pipe:ls"):
        with pytest.raises(ConfigError):
            pack(source, tmp_path / "out")
    for wrong in ({"quality": 0}, {"size_px": 0}, {"shard_mb": 0}, {"val_share": 1.0}):
        with pytest.raises(ConfigError, match=r"--"):
            pack(photos, tmp_path / "out", **wrong)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="none of the images"):
        pack(tmp_path / "bad", tmp_path / "out2")


def test_killed_at_any_moment_and_run_again_the_bytes_are_the_same(tmp_path):
    root = tmp_path / "photos"
    for number in range(120):
        path = root / str(number % 3) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, (64, 64)) if number % 17 else b"no image")
    command = [sys.executable, "-m", "tests.data.pack_kills", str(root), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert kills.keys() == {"image", "write", "fsync", "replace"}  # each was killed at, many times
    assert min(kills.values()) >= 3
    for name in kills:
        assert fingerprint(tmp_path / name) == fingerprint(tmp_path / "whole")
