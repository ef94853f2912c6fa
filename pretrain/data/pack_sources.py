"""What can be packed: a folder of images, class folders, a text list of paths, or shards that exist already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock

from pretrain.data.shards import ShardSet, image_extension, open_shards
from pretrain.errors import ConfigError

# what people keep images in: those our decoder does not read are listed as rejected, not passed over
_IMAGES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .npy .gif .bmp .tif .tiff .avif .heic .heif .jp2 .ppm .pgm".split()
)
_LISTS = (".txt", ".tsv", ".lst", ".list")


@dataclass(frozen=True)
class Item:
    """One image to be packed."""

    name: str  # relative path, kept in the sample's .json
    load: Callable[[], bytes]
    label: int | None = None
    split: str = "train"
    version: str = ""  # changes when the content does: size and time of a file
    load_json: Callable[[], bytes] | None = None  # the json beside it in a tar, whose "boxes" are kept
    load_map: Callable[[], bytes] | None = None  # the PNG with the class of every pixel, which goes in beside it


@dataclass(frozen=True)
class Source:
    """All images of a source by name, and what their labels are called (empty where they are plain numbers)."""

    items: list[Item]
    classes: list[str] = field(default_factory=list)


def find_images(source: str | Path) -> Source:
    """The images of a folder, a text list (path, tab or space, label), or tars. ConfigError where there are none."""
    path = Path(source)
    if path.is_dir():
        found = _folder(path)
        if not found.items and any(path.glob("*.tar")):
            found = _tars(f"{str(source).rstrip('/')}/*.tar")
    elif path.suffix.lower() in _LISTS:
        found = _list(path)
    elif str(source).rstrip("}").endswith(".tar") or "::" in str(source) or ":" in str(source):
        found = _tars(str(source))
    else:
        raise ConfigError(
            f"{str(source)!r} (from {Path.cwd()}) is no folder, no list ({', '.join(_LISTS)}) and no .tar; "
            "give a folder of images, a text file with one path a line, or shards"
        )
    if not found.items:
        raise ConfigError(f"{str(source)!r} holds no images; known extensions: {' '.join(sorted(_IMAGES))}")
    return found


def with_maps(found: Source, folder: Path) -> Source:
    """found, each image with the map of its name in folder: street/1.jpg has street/1.png. ConfigError where no image
    has one; those that lack theirs are rejected in their turn."""
    maps = [folder / Path(item.name).with_suffix(".png") for item in found.items]
    if not any(path.is_file() for path in maps):
        raise ConfigError(
            f"--maps={folder} holds no label map of any image; a map is a PNG of its image's name, such as {maps[0]}"
        )
    files = [_file(path, path.name, None) for path in maps]
    items = [
        replace(item, load_map=file.load, version=f"{item.version} {file.version}")
        for item, file in zip(found.items, files, strict=True)
    ]
    return Source(items, found.classes)


def _folder(root: Path) -> Source:
    """Every image below a folder. The folders in it are classes where there are two or more and hold all images."""
    names = sorted(_walk(root))
    tops = sorted({name.partition("/")[0] for name in names})
    classes = tops if len(tops) >= 2 and all("/" in name for name in names) else []
    number = {name: index for index, name in enumerate(classes)}
    items = [_file(root / name, name, number.get(name.partition("/")[0])) for name in names]
    return Source(items, classes)


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _IMAGES:
                yield os.path.relpath(os.path.join(folder, name), root)


def _file(path: Path, name: str, label: int | None) -> Item:
    try:
        status = path.stat()
        version = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        version = "missing"  # rejected, with the reason, when it is its turn
    return Item(name, partial(Path.read_bytes, path), label, version=version)


def _list(path: Path) -> Source:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list {path} cannot be read ({error})") from error
    entries = [_entry(line) for line in lines if line.strip() and not line.startswith("#")]
    texts = {label for _, label in entries if label is not None}
    numeric = all(text.isdecimal() for text in texts)
    classes = [] if numeric else sorted(texts)
    number = {text: int(text) for text in texts} if numeric else {text: index for index, text in enumerate(classes)}
    items = [_file(path.parent / name, name, None if label is None else number[label]) for name, label in entries]
    return Source(sorted(items, key=lambda item: item.name), classes)


def _entry(line: str) -> tuple[str, str | None]:
    """(path, label) of a line: behind a tab anything is a label, behind a space only a whole number is."""
    name, tab, label = line.strip().partition("\t")
    if tab:
        return name.strip(), label.strip() or None
    name, space, label = line.strip().rpartition(" ")
    return (name.strip(), label) if space and label.isdecimal() else (line.strip(), None)


def _tars(pattern: str) -> Source:
    shards = open_shards(pattern)
    lock, items = Lock(), []
    for shard, name in enumerate(shards.names):
        index = shards.index(shard)
        labels = index.labels.tolist()
        for sample in range(index.num_samples):
            extensions = [member.extension for member in index.members(sample)]
            extension = image_extension(extensions)
            assert extension is not None  # others are not in the index
            load = partial(_member, shards, lock, shard, sample, extension)
            load_json = partial(_member, shards, lock, shard, sample, "json") if "json" in extensions else None
            label = labels[sample] if labels[sample] >= 0 else None
            key, version = f"{Path(name).name}/{index.key(sample)}", index.sha256
            items.append(Item(key, load, label, version=version, load_json=load_json))
    return Source(items)


def _member(shards: ShardSet, lock: Lock, shard: int, sample: int, extension: str) -> bytes:
    with lock:  # a set is not made for threads, and reading is short beside decoding
        content: bytes = shards.read(shard, sample, (extension,))[extension]
    return content
