"""What a stranger could hand us: strings and files that touch a canary file if anything in them ever ran.

The tests of this folder pass each through the door it is meant for; `campaign` passes them all, and as many mutated
pickles as asked for. The goal is that none executes."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._utils import _rebuild_tensor_v2

from pretrain.engine import fsops
from pretrain.engine.commit import COMMIT, Commit, directory_name
from tests.data.shard_files import jpeg, samples, write

LOCATIONS = (
    "pipe:touch {canary}", "PIPE:touch {canary}", " pipe:touch {canary}", "pipe:touch%20{canary}", "|touch {canary}",
    "a.tar::pipe:touch {canary}", "pipe:touch {canary}::a.tar", "file:a.tar::pipe:touch {canary}",
    "a.tar,pipe:touch {canary}", "{{a.tar,pipe:touch {canary}}}", "{{pipe,https}}:touch {canary}", "${{EVIL}}",
    "p{{i,i}}pe:touch {canary}", "${{EVIL}}/a-{{0..9}}.tar", "a.tar,${{EVIL}}", "$(touch {canary})", "`touch {canary}`",
    "https://$(touch {canary})/*.tar", "ssh://host/a.tar", "gs://b/a.tar", "s3://b/a.tar", "hf://a/b.tar",
    "hdfs://h/a.tar", "ais://b/a.tar", "htgs://b/a.tar", "http://169.254.169.254/latest", "ftp://h/a.tar",
    "rsync://h/a.tar", "store://a", "python:os.system('touch {canary}')", "data:,touch",
    "exec:touch {canary}", "file:pipe:touch {canary}",
)  # fmt: skip
EXECUTABLE = "pkl pickle pyd pth pt ten npz json yaml yml py pyc sh so eps ps svg html desktop".split()
HUGE = 1 << 60


class Call:
    """Pickled, it is a call that whoever unpickles it makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


class Claim:
    """A storage that says it has so many float32, and whose file has four bytes."""

    def __init__(self, numel: int) -> None:
        self.id = ("storage", torch.FloatStorage, "0", "cpu", numel)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.id if isinstance(value, Claim) else None


def pickled(value: Any) -> bytes:
    """value as torch pickles it, claims being storages of the archive around it."""
    out = io.BytesIO()
    _Pickler(out, 2).dump(value)
    return out.getvalue()


def pickles(canary: Path) -> dict[str, bytes]:
    """Pickles that touch the canary, each by another way."""
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    calls = {
        "system": Call(os.system, command), "exec": Call(exec, code), "eval": Call(eval, code),
        "open": Call(open, str(canary), "w"), "touch": Call(Path.touch, canary),
        "state": OrderedDict(weight=torch.zeros(2), evil=Call(os.system, command)),
        "loads": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
    }  # fmt: skip
    text = f"S'{command}'\n".encode()
    return {name: pickle.dumps(call, 2) for name, call in calls.items()} | {
        "opcodes": b"cposix\nsystem\n(" + text + b"tR.",
        "by getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(" + text + b"tR.",
        "instance": b"(" + text + b"iposix\nsystem\n.",
        "protocol 4": pickle.dumps(Call(os.system, command), 4),
    }


def harmless() -> list[bytes]:
    """Pickles that are read: a plain one, and one with a tensor of the archive's storage."""
    tensor = Call(_rebuild_tensor_v2, Claim(1), 0, (1,), (1,), False, OrderedDict())
    more = {"name": "x", "step": 7, "deep": {"a": (1, 2.5, None, True, [HUGE, "text"])}}
    return [pickled(more), pickled(OrderedDict(weight=tensor)), pickled({"model": {"weight": tensor}, **more})]


def archive(path: Path, content: bytes, storage: bytes = bytes(4), compression: int = zipfile.ZIP_STORED) -> Path:
    """A file as torch.save writes it, around any pickle and one storage."""
    with zipfile.ZipFile(path, "w", compression) as file:
        entries = {"data.pkl": content, "byteorder": b"little", "data/0": storage, "version": b"3\n"}
        for name, data in entries.items():
            file.writestr(f"archive/{name}", data)
    return path


def safetensors(path: Path, header: bytes | dict[str, Any], length: int | None = None, data: bytes = b"") -> Path:
    """A file with that header, which says that it is so long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def weights(folder: Path, canary: Path) -> dict[str, Path]:
    """Files of weights that run, that claim what they do not hold, or that are none, by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for name, content in pickles(canary).items():
        for kind, suffix in (("bare", ".bin"), ("posing as safetensors", ".safetensors")):
            found[f"{name}, {kind}"] = folder / f"{len(found)}{suffix}"
            found[f"{name}, {kind}"].write_bytes(content)
        found[f"{name}, archive"] = archive(folder / f"{len(found)}.pt", content)
    evil = {"weight": torch.zeros(2), "evil": Call(os.system, f"touch {canary}")}
    torch.save(evil, folder / "new.pth")
    torch.save(evil, folder / "old.pth", _use_new_zipfile_serialization=False)
    with tarfile.open(folder / "tar.pt", "w") as tar:
        for part in ("pickle", "storages", "tensors"):
            content = pickles(canary)["system"]
            entry = tarfile.TarInfo(part)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    found |= {name: folder / name for name in ("new.pth", "old.pth", "tar.pt")}
    return found | _claims(folder)


def _claims(folder: Path) -> dict[str, Path]:
    """Files that claim more than they hold."""
    tensor = {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}
    loop: dict[str, Any] = {"weight": torch.zeros(1)}
    loop["again"] = loop
    views = {"view": torch.zeros(1, dtype=torch.float16).expand(1 << 40)}
    many = torch.zeros(1 << 12)
    torch.save(views, folder / "view.pt")
    torch.save(views, folder / "view-old.pt", _use_new_zipfile_serialization=False)
    torch.save({f"w{n}": many for n in range(64)}, folder / "shared.pt")
    huge = Call(_rebuild_tensor_v2, Claim(HUGE), 0, (HUGE,), (1,), False, OrderedDict())
    return {
        "bomb": archive(folder / "bomb.pt", pickled({}), bytes(1 << 26), zipfile.ZIP_DEFLATED),
        "2**60 values": archive(folder / "claim.pt", pickled({"weight": huge})),
        "bytes": archive(folder / "bytes.pt", pickled({"weight": Call(bytearray, 1 << 50)})),
        "a view of 2**40 values": folder / "view.pt", "the same, old format": folder / "view-old.pt",
        "one storage 64 times": folder / "shared.pt",
        "header of 100 GB": safetensors(folder / "long.safetensors", {}, 100 << 30),
        "header of 99 MB in 10 bytes": safetensors(folder / "longer.safetensors", {}, 99_000_000),
        "header of 2**60 values": safetensors(folder / "wide.safetensors", {"weight": tensor}),
        "shape that wraps": safetensors(folder / "wraps.safetensors", {
            "weight": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}}),
        "deep header": safetensors(folder / "deep.safetensors", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "overlap": safetensors(folder / "overlap.safetensors", {
            n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, data=bytes(4)),
        "nothing": safetensors(folder / "nothing.safetensors", b"", 0), "empty": archive(folder / "empty.pt", b""),
        "no dict": archive(folder / "list.pt", pickled([1, 2])), "list of itself": _loop_of_lists(folder / "loop.pt"),
    }  # fmt: skip


def _loop_of_lists(path: Path) -> Path:
    loop: list[Any] = []
    loop.append(loop)
    return archive(path, pickled(loop))


def disguises(canary: Path) -> dict[str, bytes]:
    """What a member called .jpg may hold in place of a picture."""
    command = f"touch {canary}"
    array = io.BytesIO()
    np.save(array, np.array([Call(os.system, command)], dtype=object), allow_pickle=True)
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    eps = f"{head}(%pipe%{command}) (w) file pop\nshowpage\n%%EOF\n".encode()
    eps_header = b"\xc5\xd0\xd3\xc6" + struct.pack("<6IHH", 32, len(eps), 0, 0, 0, 0, 0xFFFF, 0)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{canary}"/><script>{command}</script></svg>'
    pickle_of = pickles(canary)
    size = struct.pack(">I4sIIBBBBB", 13, b"IHDR", 1 << 31, 1 << 31, 8, 2, 0, 0, 0)
    return {f"pickle {name}": content for name, content in pickle_of.items()} | {
        "gzip": gzip.compress(pickle_of["system"]), "object array": array.getvalue(), "eps": eps,
        "binary eps": eps_header + eps, "svg": svg.encode(), "pdf": b"%PDF-1.4\n" + pickle_of["system"],
        "script": f"#!/bin/sh\n{command}\n".encode(),
        "gif": b"GIF89a" + bytes(20), "tiff": b"II*\0" + bytes(20), "avif": b"\0\0\0\x20ftypavif" + bytes(20),
        "jpeg then pickle": jpeg(1)[:200] + pickle_of["system"], "webp": b"RIFF\xff\0\0\0WEBPVP8X" + bytes(40),
        "png of 2**62 pixels": b"\x89PNG\r\n\x1a\n" + size + bytes(4), "nothing": b"",
    }  # fmt: skip


def shard(path: Path, canary: Path, good: int = 24) -> Path:
    """A tar of good samples, of samples with every member that a decoder could run, of pictures that are none, and of
    keys that a shell would run."""
    evil = pickles(canary)["system"]
    members = samples(good)
    for extension in EXECUTABLE:
        name = f"with-{extension}"
        members += [(f"{name}.jpg", jpeg(7)), (f"{name}.cls", b"1"), (f"{name}.{extension}", evil)]
    for number, (name, content) in enumerate(disguises(canary).items()):
        members += [(f"no-{number}-{name.replace(' ', '-')}.{'npy' if 'array' in name else 'jpg'}", content)]
    keys = (f"$(touch {canary})", f";touch {canary};", f"`touch {canary}`", "-rf", "~", "%n%s{0}")
    members += [(f"{key}/key.jpg", jpeg(8)) for key in keys]
    return write(path, members, tarfile.PAX_FORMAT)


def run(run_dir: Path, content: bytes) -> Path:
    """A run whose one checkpoint is whole, by its manifest, and whose file of weights is content."""
    directory = run_dir / "ckpt" / directory_name(7, 1)
    directory.mkdir(parents=True)
    sums = {"rank00000.safetensors": fsops.write(directory / "rank00000.safetensors", [content])}
    fsops.write(directory / COMMIT, [Commit(7, 1, "partitioned", {"fingerprint": "f00d"}, {}, sums).encode()])
    return run_dir


def configs() -> dict[str, str]:
    """Texts of a config.json that name what is not ours, or are not what they seem."""
    named = {name: json.dumps({"type": name, "args": "touch"}) for name in (
        "os:system", "subprocess:Popen", "builtins:eval", "pathlib:Path", "pretrain.config_json:importlib",
        "pretrain:sys", "pretrain.engine.fsops:os", "pretrain.engine.fsops:hashlib", "pretrain.data.loader:wds",
        "pretrain.errors:ConfigError", "masking.mask:Tensor", "pretrain.nowhere:X", "pretrain..config:Config",
        "pretrain/config:Config", "masking:", ":", "",
        "pretrain.data.fetch:HTTPHandler", "tests.security.payloads:Call", "configs.demo:config", "launch.cli:main",
    )}  # fmt: skip
    return named | {
        "a type that is a list": '{"type": ["os", "system"]}', "a type that is a number": '{"type": 7}',
        "a key twice": '{"type": "pretrain.config:Config", "name": "a", "name": "b"}', "no object": "[1, 2, 3]",
        "deep": "[" * 100_000 + "]" * 100_000, "deep objects": '{"a":' * 500 + "1" + "}" * 500,
        "a number without end": '{"type": "pretrain.config:Config", "steps": ' + "9" * 5_000 + "}",
        "an unknown setting": '{"type": "pretrain.config:Config", "__class__": "os"}', "no json": "import os",
    }  # fmt: skip


def words(canary: Path) -> list[str]:
    """Texts that a shell would run if it ever read them as more than one word."""
    return [text.replace("RUN", f"touch {canary}") for text in (
        "$(RUN)", "`RUN`", "';RUN;'", '";RUN;"', "\nRUN\n", "\r\nRUN\r\n", "'\nRUN\n'", ";RUN", "&RUN&", "|RUN",
        "x'$(RUN)'x", "\\';RUN;\\'", ")\nRUN\n(", "EOF\nRUN\n", "# filled in by lacuna submit\nRUN", "${x:-$(RUN)}",
        "\x00;RUN",
    )]  # fmt: skip


def campaign(number: int) -> dict[str, int]:
    """Passes every payload through its door, and `number` mutated pickles through the door of weights. How many there
    were of each, how many were refused and accepted (as tensors alone), how many executed, ended the process, or raised
    what is no refusal."""
    from tests.security import doors

    counts: Counter[str] = Counter(pocs=0, fuzzed_pickles=0, executed=0, crashed=0, unexpected=0, refused=0, accepted=0)
    with tempfile.TemporaryDirectory() as folder:
        counts.update(doors.all_payloads(Path(folder) / "pocs"))
        for first in range(0, number, doors.BATCH):
            counts.update(doors.mutants(Path(folder) / "mutants", first, min(doors.BATCH, number - first)))
    return dict(counts)
