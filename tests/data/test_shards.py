"""A set of shards: opened with or without a manifest, read by offset, changes and faults told from each other."""

import errno
import os
import pickle

import pytest

from pretrain.data import retry as retrying
from pretrain.data.indexing import index_shards
from pretrain.data.shards import BadBytes, index_shard, open_shards
from pretrain.errors import ConfigError, DataError
from tests.data.shard_files import jpeg, samples, write


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(retrying, "BACKOFF_S", 0.0)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "s-0.tar", samples(5))
    write(tmp_path / "s-1.tar", [])
    write(tmp_path / "s-2.tar", samples(7, first=5))
    return tmp_path


def flip(path, at):
    """Changes one byte in place and leaves the file's time as it was, as rot in storage does."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_samples_are_read_with_their_key_their_shard_and_their_bytes(folder):
    shards = open_shards(str(folder / "s-*.tar"))
    assert shards.lengths.tolist() == [5, 0, 7]
    assert shards.num_samples == 12
    assert shards.root == str(folder)
    for shard, sample, number in ((0, 4, 4), (2, 0, 5), (2, 6, 11)):
        want = {"cls": str(number % 10).encode(), "jpg": jpeg(number)}
        names = {"__key__": f"{number:05d}", "__url__": str(folder / f"s-{shard}.tar")}
        assert shards.read(shard, sample) == names | want
        assert shards.read(shard, sample, ("jpg",)).keys() == {"__key__", "__url__", "jpg"}
        assert shards.key(shard, sample) == f"{number:05d}"
    assert shards.labels(2).tolist() == [5, 6, 7, 8, 9, 0, 1]
    assert shards.notes() == ["1 of 3 shards are valid but hold no sample"]


def test_a_set_travels_to_another_process(folder):
    shards = open_shards(str(folder / "s-*.tar"))
    shards.read(0, 0)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(2, 3) == shards.read(2, 3)
    assert copy.fingerprint == shards.fingerprint


def test_few_files_stay_open_however_many_shards_there_are(tmp_path):
    for number in range(20):
        write(tmp_path / f"{number:02d}.tar", samples(1, first=number))
    shards = open_shards(str(tmp_path))
    shards._max_files = 3
    for number in [*range(20), *range(20)]:
        assert shards.read(number, 0)["jpg"] == jpeg(number)
    assert len(shards._files) == 3


def test_the_fingerprint_is_of_content_and_order_not_of_names_or_of_the_manifest(folder, tmp_path_factory):
    without = open_shards(str(folder / "s-*.tar")).fingerprint
    report = index_shards(str(folder / "s-*.tar"))
    assert report.fingerprint == without == open_shards(str(folder / "s-*.tar")).fingerprint
    assert "12 images in 3 shards" in str(report)
    other = tmp_path_factory.mktemp("other")
    write(other / "first.tar", samples(5))
    write(other / "second.tar", [])
    write(other / "third.tar", samples(7, first=5))
    assert open_shards(str(other)).fingerprint == without
    assert open_shards(f"{folder}/s-2.tar,{folder}/s-0.tar,{folder}/s-1.tar").fingerprint != without
    assert open_shards(f"{folder}/s-0.tar,{other}/second.tar,{other}/third.tar").fingerprint == without
    assert open_shards(f"{folder}/s-2.tar").fingerprint != without


def test_an_index_is_built_once_and_only_if_allowed(folder):
    with pytest.raises(DataError, match="no index; run `lacuna index`"):
        open_shards(str(folder / "s-*.tar"), index_missing=False)
    seen = []
    open_shards(str(folder / "s-*.tar"), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.idx")}
    assert len(before) == 3
    open_shards(str(folder / "s-*.tar"), index_missing=False)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*.idx")}


def test_a_read_only_folder_is_left_alone(folder, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    folder.chmod(0o555)
    try:
        index_shards(str(folder))
        assert open_shards(str(folder)).num_samples == 12
        assert sorted(path.name for path in folder.iterdir()) == ["s-0.tar", "s-1.tar", "s-2.tar"]
        assert len(list(home.rglob("*.idx"))) == 3
        assert len(list(home.rglob("manifest.json"))) == 1
    finally:
        folder.chmod(0o755)


def test_changed_bytes_are_bad_and_only_those(folder):
    path = folder / "s-2.tar"
    shards = open_shards(str(path))
    flip(path, shards.index(0).members(3)[1].offset + 40)
    flip(path, shards.index(0).members(5)[0].offset - 500)  # a header: nobody reads it any more
    with pytest.raises(BadBytes, match=r"checksum of \.cls, \.jpg"):
        shards.read(0, 3)
    assert [shards.read(0, n)["jpg"] for n in (0, 1, 2, 4, 5, 6)] == [jpeg(n + 5) for n in (0, 1, 2, 4, 5, 6)]
    assert shards.read(0, 3, ("cls",))["cls"] == b"8"


def test_a_shard_that_is_replaced_ends_the_run(folder):
    path = folder / "s-0.tar"
    shards = open_shards(str(path))
    path.rename(folder / "old.tar")
    write(path, samples(5, first=100))
    with pytest.raises(DataError, match="dataset changed"):
        shards.read(0, 0)


def test_a_shard_that_is_cut_while_it_is_open_ends_the_run(folder):
    path = folder / "s-0.tar"
    shards = open_shards(str(path))
    shards.read(0, 0)
    os.truncate(path, 2000)
    with pytest.raises(DataError, match="dataset changed"):
        shards.read(0, 4)


@pytest.mark.parametrize("manifest", [False, True])
def test_a_shard_that_is_not_the_indexed_one_is_refused_at_the_start(folder, manifest):
    path = folder / "s-0.tar"
    (index_shards if manifest else open_shards)(str(folder / "s-*.tar"))
    later = path.with_name("s-0.tar.idx").stat().st_mtime_ns + 10**9
    size = path.stat().st_size
    os.utime(path, ns=(later, later))
    open_shards(str(folder / "s-*.tar"))  # newer, but the same bytes
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    later += 10**12
    os.utime(path, ns=(later, later))
    assert path.stat().st_size == size
    with pytest.raises(DataError, match="dataset changed"):
        open_shards(str(folder / "s-*.tar"))
    write(path, samples(30))
    with pytest.raises(DataError, match="bytes"):
        open_shards(str(folder / "s-*.tar"))
    index_shards(str(folder / "s-*.tar"))
    assert open_shards(str(folder / "s-*.tar")).num_samples == 37


def test_a_listed_shard_that_is_gone_is_missed_by_a_glob_too(folder):
    index_shards(str(folder / "s-*.tar"))
    (folder / "s-2.tar").unlink()
    with pytest.raises(DataError, match=r"s-2\.tar is in its folder's manifest but is gone"):
        open_shards(str(folder / "s-*.tar"))
    with pytest.raises(DataError, match=r"s-2\.tar is listed"):
        open_shards(str(folder / "s-{0..2}.tar"))
    assert open_shards(str(folder / "s-0.tar")).num_samples == 5
    with pytest.raises(ConfigError, match="cannot be read"):
        open_shards(str(folder / "s-9.tar"))


def test_an_edited_manifest_is_refused(folder):
    index_shards(str(folder / "s-*.tar"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"samples": 5', '"samples": 6'))
    with pytest.raises(DataError, match="its own fingerprint"):
        open_shards(str(folder / "s-*.tar"))
    path.write_text('{"name": "a web app"}')  # another project's manifest is none of ours
    assert open_shards(str(folder / "s-*.tar")).num_samples == 12


def test_all_damaged_shards_are_named_at_once(folder):
    (folder / "s-3.tar").write_bytes(b"")
    (folder / "s-4.tar").write_bytes((folder / "s-0.tar").read_bytes()[:3000])
    with pytest.raises(DataError, match="2 of 5 shards were refused") as caught:
        index_shards(str(folder))
    assert "s-3.tar" in str(caught.value)
    assert "s-4.tar" in str(caught.value)
    assert not (folder / "manifest.json").exists()


def test_shards_without_any_sample_are_refused(folder):
    with pytest.raises(DataError, match="no usable sample"):
        open_shards(str(folder / "s-1.tar"))


def failing(monkeypatch, times, error):
    real, left = os.pread, [times]

    def pread(*arguments):
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_stumbles_is_tried_again_and_never_skipped(folder, monkeypatch, error):
    shards = open_shards(str(folder / "s-0.tar"))
    failing(monkeypatch, 4, error)
    assert shards.read(0, 1)["jpg"] == jpeg(1)
    failing(monkeypatch, 5, error)
    with pytest.raises(DataError, match="tried 5 times"):
        shards.read(0, 1)


def test_bytes_that_were_wrong_once_are_read_again(folder, monkeypatch):
    shards = open_shards(str(folder / "s-0.tar"))
    real, wrong = os.pread, [True]

    def pread(*arguments):
        data = real(*arguments)
        return bytes(len(data)) if wrong and wrong.pop() else data

    monkeypatch.setattr(os, "pread", pread)
    assert shards.read(0, 1)["jpg"] == jpeg(1)


def test_another_index_than_the_set_was_opened_with_is_refused(folder):
    shards = open_shards(str(folder / "s-0.tar"))
    write(folder / "s-0.tar", samples(5, first=50))
    index_shard(folder / "s-0.tar")
    with pytest.raises(DataError, match="its index is not the one"):
        shards.read(0, 0)


def test_shards_sorted_by_class_are_remarked_on(tmp_path):
    members = [(name, str(int(name[:5]) // 40).encode() if name.endswith("cls") else c) for name, c in samples(120)]
    write(tmp_path / "sorted.tar", members)
    write(tmp_path / "mixed.tar", samples(120))
    assert "sorted by class" in open_shards(str(tmp_path / "sorted.tar")).notes()[0]
    assert open_shards(str(tmp_path / "mixed.tar")).notes() == []
