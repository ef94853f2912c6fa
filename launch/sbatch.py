"""The batch script: slurm/train.sbatch with its options, and a few lines at one place, filled in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources

from pretrain.errors import ConfigError

_MARK = "# filled in by lacuna submit"
_OPTION = "#SBATCH --"


def template() -> str:
    """The text of slurm/train.sbatch as it is installed."""
    return resources.files("slurm").joinpath("train.sbatch").read_text(encoding="utf-8")


def render(options: Mapping[str, str | None], lines: Sequence[str]) -> str:
    """The script: `#SBATCH --name=value` for each of options (None: the template's own is left out; an empty value: a
    flag), those of the template that are not among them as they are, and lines where it has room for them. Raises
    ConfigError for a value with a line break."""
    text = template()
    head, _, rest = text.partition(_OPTION)
    block, _, body = (_OPTION + rest).partition("\n\n")
    found: dict[str, str | None] = {}
    for line in block.splitlines():
        name, _, value = line.removeprefix(_OPTION).partition("=")
        found[name] = value
    if "gpus" in options:  # whatever it is called here
        found.pop("gpus-per-task", None)
    merged = {**found, **{name: value for name, value in options.items() if name != "gpus"}}
    kept = {name: value for name, value in merged.items() if value is not None}
    header = [f"{_OPTION}{name}" + (f"={value}" if value else "") for name, value in kept.items()]
    if options.get("gpus"):
        header.append(f"#SBATCH {options['gpus']}")
    broken = next((line for line in header if "\n" in line or "\r" in line), None)
    if broken is not None:  # what follows would be a command
        raise ConfigError(f"{broken!r} has a line break, and an option of sbatch is one line; take it out")
    assert body.count(_MARK) == 1, "slurm/train.sbatch has lost its mark"
    return head + "\n".join(header) + "\n\n" + body.replace(_MARK, "\n".join([_MARK, *lines]))


def arguments(words: Sequence[str]) -> str:
    """The line that gives a script its arguments, whatever is in them."""
    return "set -- " + " ".join(shlex.quote(word) for word in words)


def array(words: Sequence[str]) -> str:
    """A bash array's value."""
    return "(" + " ".join(shlex.quote(word) for word in words) + ")"
