"""Building an index validates the tar: what is right is found, what is damaged is refused in a sentence."""

import gc
import gzip
import io
import tarfile

import numpy as np
import pytest

from pretrain.data.index_file import load
from pretrain.data.tar_index import build_index, image_extension, read_index
from pretrain.data.tar_members import BrokenShard
from pretrain.errors import DataError
from tests.data.shard_files import jpeg, samples, write

FORMS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def index_of(path, **how):
    return read_index(build_index(path, **how), path)


def contents(path, index, sample):
    data = path.read_bytes()
    return {m.extension: data[m.offset : m.offset + m.size] for m in index.members(sample)}


@pytest.mark.parametrize("form", FORMS)
def test_every_member_is_found_where_it_lies_in_every_tar_format(tmp_path, form):
    deep = "/".join(["a-folder-with-a-long-name"] * 5) if form != "ustar" else "folder"
    members = [(f"{deep}/{name}", content) for name, content in samples(12)]
    path = write(tmp_path / "x.tar", members, FORMS[form])
    index = index_of(path, verify="decode")
    assert index.num_samples == 12
    assert index.key(3) == f"{deep}/00003"
    assert index.labels.tolist() == [n % 10 for n in range(12)]
    for number in range(12):
        assert contents(path, index, number) == {"cls": str(number % 10).encode(), "jpg": jpeg(number)}


def test_times_with_fractions_make_pax_headers_and_change_nothing(tmp_path):
    members = []
    for name, content in samples(3):
        entry = tarfile.TarInfo(name)
        entry.mtime = 1.25
        members.append((entry, content))
    path = write(tmp_path / "x.tar", members, tarfile.PAX_FORMAT)
    assert [contents(path, index_of(path), n)["jpg"] for n in range(3)] == [jpeg(n) for n in range(3)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its file to the collector
def test_samples_are_grouped_as_webdataset_groups_them(tmp_path):
    import webdataset as wds

    members = [
        ("__meta__/x.jpg", b"meta"), ("README", b"no dot"), ("a.b/c.d.JPG", jpeg(0)), ("a.b/c.seg.PNG", b"map"),
        ("._c.jpg", b"fork"), ("e.jpeg", jpeg(1)), ("e.cls", b" 7\n"), ("f.cls", b"no number"), ("f.webp", jpeg(2)),
    ]  # fmt: skip
    path = write(tmp_path / "x.tar", members)
    folder = tarfile.TarInfo("a.b")
    folder.type = tarfile.DIRTYPE
    path = write(tmp_path / "y.tar", [(folder, b""), *members])
    index = index_of(path)
    want = [
        (s["__key__"], {name: value for name, value in s.items() if not name.startswith("__")})
        for s in wds.WebDataset(str(path), shardshuffle=False)
    ]
    gc.collect()
    assert [key for key, _ in want] == ["a.b/c", "e", "f"]
    assert [entry.key for entry in index.excluded] == ["a.b/c"]  # its extensions are d.jpg and seg.png: no image
    assert [(index.key(n), contents(path, index, n)) for n in range(2)] == want[1:]
    assert index.labels.tolist() == [7, -1]


def test_unusable_images_are_left_out_and_listed(tmp_path):
    members = samples(2) + [("no.cls", b"1"), ("text.jpg", b"<html>"), ("empty.png", b""), ("cut.jpg", jpeg(9)[:-60])]
    path = write(tmp_path / "x.tar", members + samples(2, first=2))
    by_header = {entry.key: entry.reason for entry in index_of(path).excluded}
    assert by_header.keys() == {"no", "text", "empty"}
    assert by_header["no"] == "no image member"
    index = index_of(path, verify="decode")
    assert {entry.key for entry in index.excluded} == {"no", "text", "empty", "cut"}
    assert [index.key(n) for n in range(index.num_samples)] == ["00000", "00001", "00002", "00003"]


def test_an_empty_archive_is_valid_and_holds_nothing(tmp_path):
    assert index_of(write(tmp_path / "x.tar", [])).num_samples == 0


def damaged(kind, path):
    good = write(path, samples(12)).read_bytes()
    header = bytearray(good)
    header[1024 + 3] ^= 1
    nothing = bytearray(good)
    nothing[1024:1536] = bytes(512)
    return {
        "empty file": b"",
        "web page": b"<!DOCTYPE html>" + bytes(600),
        "gzip": gzip.compress(good),
        "noise": bytes(range(256)) * 8,
        "cut in a member": good[: 1024 + 512 + 100],
        "cut in a header": good[: 1024 + 100],
        "cut at a border": good[:1024],
        "cut end marker": good[: good.rstrip(b"\0").__len__() + 511 & ~511] + bytes(512),
        "damaged header": bytes(header),
        "zeroed header": bytes(nothing),
        "joined archives": good + good,
        "zeroed end": good[:4096] + bytes(len(good) - 4096),
        "zeroed last member": good[: good.index(b"00011.jpg")]
        + bytes((-good.index(b"00011.jpg") - 1024) % 10_240 + 1024),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    {
        "empty file": "empty", "web page": "web page", "gzip": "gzip data", "noise": "not a tar file",
        "cut in a member": "cut short", "cut in a header": "cut inside a header", "cut at a border": "cut at a member",
        "cut end marker": "cut in the end marker", "damaged header": "at byte 1024: a damaged header",
        "zeroed header": "at byte 1024: a zeroed header", "joined archives": "another archive joined on",
        "zeroed end": "members were lost", "zeroed last member": r"lacks \.jpg, which all 11 others have",
    }.items(),
)  # fmt: skip
def test_damage_is_refused_with_the_shard_the_byte_and_what_to_do(tmp_path, kind, words):
    path = tmp_path / "x.tar"
    path.write_bytes(damaged(kind, path))
    with pytest.raises(BrokenShard, match=words) as caught:
        build_index(path)
    assert str(caught.value).startswith(f"{path}: at byte ")
    assert ";" in str(caught.value)
    assert caught.value.exit_code == 76


def test_repeated_keys_are_refused_or_the_first_is_kept(tmp_path):
    for name, members in {
        "apart": samples(3) + [("00001.cls", b"9"), ("00001.jpg", jpeg(77))] + samples(1, first=5),
        "adjacent": samples(2) + [("00001.cls", b"9"), ("00001.jpg", jpeg(77))] + samples(1, first=5),
    }.items():
        path = write(tmp_path / f"{name}.tar", members)
        with pytest.raises(BrokenShard, match=r"comes twice; .*--dedupe keep-first"):
            build_index(path)
        index = index_of(path, dedupe="keep-first")
        at = [index.key(n) for n in range(index.num_samples)].index("00001")
        assert contents(path, index, at) == {"cls": b"1", "jpg": jpeg(1)}
        assert {entry.reason for entry in index.excluded} == {"duplicate key"}


def test_interleaved_members_are_refused_whatever_is_asked(tmp_path):
    members = samples(4)
    members[1], members[2] = members[2], members[1]
    path = write(tmp_path / "x.tar", members)
    for dedupe in ("refuse", "keep-first"):
        with pytest.raises(BrokenShard, match="interleaved"):
            build_index(path, dedupe=dedupe)


@pytest.mark.parametrize(
    "name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "a\nb.jpg", "a\x1b[2J.jpg", "n" * 260 + ".jpg"]
)
def test_names_that_point_outside_or_hide_something_are_refused(tmp_path, name):
    path = write(tmp_path / "x.tar", [(name, jpeg(0))], tarfile.PAX_FORMAT)
    with pytest.raises(BrokenShard, match="not safe"):
        build_index(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_regular_files_may_be_in_a_shard(tmp_path, kind):
    entry = tarfile.TarInfo("a.jpg")
    entry.type, entry.linkname = kind, "/etc/passwd"
    path = write(tmp_path / "x.tar", [(entry, b"")])
    with pytest.raises(BrokenShard, match="only regular files"):
        build_index(path)


def test_a_declared_size_of_a_terabyte_allocates_nothing(tmp_path):
    entry = tarfile.TarInfo("a.jpg")
    entry.size = 1 << 40
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "x.tar"
        path.write_bytes(entry.tobuf(form) + bytes(2048))
        with pytest.raises(BrokenShard, match="the limit"):
            build_index(path)


def test_the_index_of_equal_tars_is_equal_and_its_damage_is_seen(tmp_path):
    path = write(tmp_path / "x.tar", samples(5))
    content = build_index(path)
    assert content == build_index(write(tmp_path / "y.tar", samples(5)))
    place = tmp_path / "x.tar.idx"
    for at in (3, 60, len(content) // 2, len(content) - 1):
        place.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(DataError, match="lacuna index"):
            load(place)
    place.write_bytes(content[:-7])
    with pytest.raises(DataError, match="damaged"):
        load(place)
    place.write_bytes(content)
    assert load(place).num_samples == 5


def test_verifying_by_decoding_gives_the_same_samples_the_same_identity(tmp_path):
    path = write(tmp_path / "x.tar", samples(5))
    assert index_of(path).body_sha256 == index_of(path, verify="decode").body_sha256


def test_an_array_is_an_image_and_jpg_goes_before_png(tmp_path):
    out = io.BytesIO()
    np.save(out, np.zeros((4, 5, 7), np.uint8))
    index = index_of(write(tmp_path / "x.tar", [("a.npy", out.getvalue())]), verify="decode")
    assert index.num_samples == 1
    assert image_extension(["cls", "png", "jpg"]) == "jpg"
    assert image_extension(["seg.png", "cls"]) is None
