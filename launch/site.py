"""The site file of `lacuna submit`: what a cluster calls otherwise, once, in TOML (slurm/site.example.toml)."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLACES = (Path("slurm/site.toml"), Path("~/.config/lacuna/site.toml"))


@dataclass(frozen=True)
class Site:
    """A cluster's own words. None: nothing is said."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: str = "--gpus-per-task=1"  # the option that asks for GPUs; {gpus} in it is the number on a node
    cpus_per_task: int | None = None
    mem: str | None = None
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # lines of the script before srun
    run: tuple[str, ...] = ()  # what srun starts in place of python -m launch; the verb goes behind it
    sbatch: tuple[str, ...] = ()  # more options, as they are


def read_site(path: Path | None) -> Site:
    """The site of path, or of the first of PLACES that is there, or one that says nothing. Raises ConfigError."""
    if path is None:
        path = next((place.expanduser() for place in PLACES if place.expanduser().is_file()), None)
        if path is None:
            return Site()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConfigError(f"the site file {path} is nested too deeply; see slurm/site.example.toml") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the site file {path} cannot be read: {error}; see slurm/site.example.toml") from error
    known = {field.name: field for field in fields(Site)}
    for name, value in found.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise ConfigError(f"the site file {path} has {name!r}, which nothing reads{hint}")
        _check(path, name, value)
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
    return Site(**settings)


def _check(path: Path, name: str, value: Any) -> None:
    lists = name in ("modules", "setup", "run", "sbatch")
    right = isinstance(value, list) and all(isinstance(text, str) for text in value) if lists else (
        isinstance(value, int) and not isinstance(value, bool) if name == "cpus_per_task" else isinstance(value, str)
    )  # fmt: skip
    if not right:
        kind = "a list of texts" if lists else "a whole number" if name == "cpus_per_task" else "a text"
        raise ConfigError(f"the site file {path} has {name} = {value!r}; it must be {kind}")
    for text in value if lists else [value]:
        if {"\n", "\r"} & set(str(text)):
            raise ConfigError(f"the site file {path} has a line break in {name}; write one line an entry")
