"""`lacuna doctor`: what this machine can do for a run, and what to mend, one line a finding."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import tempfile
import time
from importlib import metadata
from urllib.parse import urlparse

from launch import environment as env
from launch import slurm
from launch.collectives import collectives
from pretrain.errors import DataError, LacunaError

_PROBE_BYTES = 64 << 20
_VITB_BYTES = 1.35e9  # of a checkpoint of configs/mae_vitb16.py: weights and two moments of encoder and decoder
_PACKAGES = ("torch", "deepspeed", "webdataset", "einops", "safetensors", "simplejpeg", "pillow", "timm", "wandb")


def doctor(data: str | None, *, attention: bool = False) -> None:
    """Prints the findings, with `attention` the branch every usual attention takes; raises DataError when data was
    given and cannot be read."""
    place = env.detect()
    works, met = collectives(place)
    if place.rank:  # one of a job's tasks speaks
        return
    _line("ok", "process", place.describe())
    _packages()
    _devices()
    _line("ok" if works else "MEND", "collectives", met)
    _storage()
    _files()
    _wandb()
    _slurm()
    if attention:
        _attention()
    if data is not None:
        _shards(data)


def _line(mark: str, topic: str, text: str) -> None:
    print(f"{mark:<5} {topic:<11} {text}", flush=True)


def _packages() -> None:
    missing = [name for name in _PACKAGES if _version(name) is None]
    found = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES if name not in missing)
    _line("ok", "packages", found)
    if missing:
        _line("MEND", "packages", f"missing: {', '.join(missing)}; run make install, or pip install lacuna")
    for name, use in (("skimage", "the embedded photographs: pip install 'lacuna[demo]'"),):
        if importlib.util.find_spec(name) is None:
            _line("note", "packages", f"{name} is not installed; it is needed for {use}")


def _devices() -> None:
    import torch

    from pretrain.engine.precision import resolve_precision

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            _line("ok", "device", f"cuda:{number} {torch.cuda.get_device_name(number)}, {memory:.0f} GiB")
    else:
        _line("note", "device", f"no GPU: runs use {env.cores()} CPU cores; fine for tests and small models")
    _line("ok", "precision", f"engine.precision=auto means {resolve_precision('auto')} here")


def _attention() -> None:
    import torch

    from masking.attention.op import Shape, choose
    from masking.attention.weighting import PLAIN, Weighting

    one, table = torch.ones(()), torch.ones(2, 2)
    cases = {
        "MAE, encoder of a ViT-B": (PLAIN, Shape(64, 50, 50)),
        "MAE, decoder": (PLAIN, Shape(32, 197, 197)),
        "all patches of a ViT-B": (PLAIN, Shape(64, 197, 197)),
        "iLLaMA's soft mask": (Weighting(alpha=one), Shape(64, 197, 197)),
        "padded keys": (Weighting(key_lengths=one), Shape(64, 197, 197)),
        "hard classes": (Weighting(before=table), Shape(64, 197, 197)),
        "reweighted classes": (Weighting(after=table), Shape(64, 197, 197)),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.bfloat16, torch.float32):
        for name, (weighting, shape) in cases.items():
            branch = choose(device, dtype, weighting, shape)
            what = f"{str(dtype).removeprefix('torch.')} {name} ({shape.num_queries} tokens, heads of {shape.head_dim})"
            _line("ok", "attention", f"{what}: {branch.name}, because {branch.reason}")


def _storage() -> None:
    free = shutil.disk_usage(".").free / 2**30
    mark = "ok" if free > 10 else "MEND"
    _line(mark, "disk", f"{free:.1f} GiB free here" + ("" if free > 10 else "; checkpoints and shards need more"))
    _write_rate()
    if os.path.isdir("/dev/shm"):
        shared = os.statvfs("/dev/shm")
        size = shared.f_bavail * shared.f_frsize / 2**30
        _line(
            "ok" if size > 1 else "MEND",
            "shm",
            f"{size:.1f} GiB free in /dev/shm"
            + (
                ""
                if size > 1
                else "; loader workers pass batches through it: use docker run --shm-size=8g, or data.workers=0"
            ),
        )


def _write_rate() -> None:
    """Writes a file as a checkpoint is written, flushed to the disk, and removes it."""
    content = os.urandom(_PROBE_BYTES)
    try:
        with tempfile.NamedTemporaryFile(dir=".", prefix=".lacuna-doctor-") as file:
            began = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            rate = _PROBE_BYTES / (time.perf_counter() - began)
    except OSError as error:
        _line("MEND", "disk", f"cannot write here ({error}); set runs_dir to a place that takes files")
        return
    size = _VITB_BYTES / rate
    _line("ok", "disk", f"writes {rate / 1e6:,.0f} MB/s: a ViT-B's checkpoint takes some {size:.0f} s" + (
        "" if size < 30 else "; checkpoint.background=true lets training go on meanwhile"))  # fmt: skip


def _files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _line(
        "ok" if soft >= 1024 else "MEND",
        "open files",
        f"limit {soft} (hard {hard})" + ("" if soft >= 1024 else "; ulimit -n 4096"),
    )


def _wandb() -> None:
    access = env.wandb_access()
    if not access.has_key:
        _line("note", "wandb", "no API key: runs are mirrored offline; wandb login, or tracking.wandb=off")
        return
    url = urlparse(access.base_url)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=3).close()
        _line("ok", "wandb", f"{url.hostname} answers")
    except OSError:
        _line("note", "wandb", f"{url.hostname} does not answer: runs are mirrored offline; wandb sync later")


def _slurm() -> None:
    """What of the cluster decides how a preempted run fares."""
    site = slurm.site_settings()
    if not site:
        _line("note", "slurm", "no SLURM here; lacuna submit --dry-run shows its script all the same")
        return
    _line("ok", "slurm", f"{site.get('SLURM_VERSION', 'SLURM')}, cluster {site.get('ClusterName', '?')}")
    if "75" in site.get("RequeueExit", "").split(","):
        _line("ok", "slurm", "RequeueExit has 75: SLURM itself puts a stopped run back into the queue")
    else:
        _line("note", "slurm", "RequeueExit lacks 75: the script asks scontrol, which must be allowed on the nodes")
    if site.get("PreemptMode", "OFF").startswith("OFF"):
        _line("ok", "slurm", "jobs are not preempted")
    elif "preempt_send_user_signal" in site.get("SlurmctldParameters", ""):
        _line("ok", "slurm", "a preempted job gets USR2 as soon as the grace time of its partition begins")
    else:
        _line("note", "slurm", "a preempted job's first notice is TERM: it has the partition's GraceTime, or KillWait "
              f"({site.get('KillWait', '?')}), to save; checkpoint.every_steps is what is lost beyond")  # fmt: skip
    if site.get("JobRequeue") == "0":
        _line("ok", "slurm", "jobs are not requeued unless they ask; lacuna submit's do (--requeue)")


def _shards(data: str) -> None:
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern

    try:
        shards = open_shards(as_pattern(data), index_missing=False)
    except LacunaError as error:
        _line("MEND", "data", str(error))
        raise DataError(f"{data} cannot be trained on; see the line above") from error
    _line(
        "ok",
        "data",
        f"{shards.num_samples:,} images in {len(shards.names)} shards, fingerprint {shards.fingerprint[:12]}",
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
