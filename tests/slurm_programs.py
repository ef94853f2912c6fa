"""SLURM's programs for the tests: those that are installed, or else what is in Debian's packages, fetched once into a
cache folder and unpacked there, not installed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "libjson-c5",
    "liblua5.1-0", "libhwloc15", "libnuma1", "libdbus-1-3", "libyaml-0-2", "liblz4-1",
)  # fmt: skip

class NoSlurm(Exception):
    """Why there is none here."""


@functools.cache
def programs() -> Path:
    """The root below which usr/bin/srun and the others are. Raises NoSlurm."""
    if shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("munged"):
        return Path("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lacuna-tests" / "slurm"
    tree = cache / "tree"
    if not (tree / "usr/sbin/slurmctld-wlm").exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg"):
            raise NoSlurm("SLURM is not installed, and this is no Debian whose packages could be unpacked")
        debs = cache / f"debs-{os.getpid()}"
        debs.mkdir(parents=True)
        done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=debs, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise NoSlurm(f"SLURM is not installed, and its packages cannot be fetched: {done.stderr.strip()[-200:]}")
        fresh = cache / f"tree-{os.getpid()}"
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(fresh)], check=True, timeout=60)
        shutil.rmtree(debs)
        try:
            fresh.rename(tree)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    return tree


def plugins(tree: Path) -> str:
    """Where SLURM finds its plugins."""
    found = sorted(tree.glob("usr/lib/*/slurm-wlm")) + sorted(tree.glob("usr/lib/*/slurm"))
    return ":".join(map(str, found)) or "/usr/lib/slurm"


def libraries(tree: Path) -> str:
    """Where its programs find their libraries; nothing where they are installed."""
    if tree == Path("/"):
        return ""
    folders = [*tree.glob("usr/lib/*-linux-gnu*"), *tree.glob("lib/*-linux-gnu*"), *tree.glob("usr/lib/*/slurm-wlm")]
    return ":".join(map(str, folders))


def loader(tree: Path) -> str:
    """What starts one of the unpacked programs with its own libraries, and tells its children nothing of them."""
    if tree == Path("/"):
        return ""
    (loader,) = list(Path("/lib64").glob("ld-linux-*.so.*")) or [Path("/lib/ld-linux-aarch64.so.1")]
    return f'{loader} --library-path "{libraries(tree)}" '
