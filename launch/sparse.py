"""`lacuna sparse`: which weights a fine-tuning moved most, what a sparse run trained, and such changes applied."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.export import TARGETS


def add_options(sparse: argparse.ArgumentParser) -> None:
    """The four things `lacuna sparse` does, and what each may be told."""
    acts = sparse.add_subparsers(dest="act", required=True, metavar="ACT")
    selects = acts.add_parser("select", help="write which weights a fully tuned run moved most")
    selects.add_argument("base", help="what it began with, as init_from takes it: a run, an export, a file")
    selects.add_argument("tuned", help="what it became: a run, an export, a file")
    selects.add_argument("--keep", type=float, required=True, help="share of the weights, for example 0.05")
    saves = acts.add_parser("save", help="write what a sparse run trained")
    saves.add_argument("run", type=Path, help="run directory, for example runs/task")
    saves.add_argument("--weights", choices=("ema", "model"), default="ema", help="which weights (default ema)")
    saves.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    applies = acts.add_parser("apply", help="export an encoder with changes applied")
    applies.add_argument("base", help="what the changes belong to, as init_from takes it: a run, an export, a file")
    applies.add_argument("--add", type=Path, required=True, action="append", help="a change; may be given again")
    applies.add_argument("--to", default="plain", choices=TARGETS, metavar="NAME", help="as in lacuna export (plain)")
    for act in (selects, saves, applies):
        act.add_argument("-o", "--out", type=Path, required=True, help="file, or for apply a folder, to write")
        act.add_argument("--force", action="store_true", help="replace what is there")
        act.add_argument("--trust", action="store_true", help="read checkpoints that others could have written, too")
    acts.add_parser("show", help="say what is in a file").add_argument("file", type=Path)


def sparse(options: argparse.Namespace) -> None:
    """Does one of them, and prints what it wrote."""
    from pretrain.sparse.container import read_sparse

    if options.act == "show":
        print(_described(read_sparse(options.file), options.file))
        return
    from pretrain.export.sparse_change import change_of_run, export_changed, selection

    if options.act == "apply":
        print(export_changed(options.base, options.add, options.to, options.out, force=options.force))
        return
    _require_free(options.out, force=options.force)
    if options.act == "select":
        made = selection(options.base, options.tuned, options.keep)
    else:
        made = change_of_run(options.run, options.weights, options.step)
    _write(made, options.out)


def _require_free(out: Path, *, force: bool) -> None:
    from pretrain.errors import ConfigError

    if out.exists() and not force:
        raise ConfigError(f"{out} exists; give another --out, or --force to replace it")


def _write(made, out: Path) -> None:  # type: ignore[no-untyped-def]
    from pretrain.sparse.container import write_sparse

    write_sparse(made, out)
    print(_described(made, out))


def _described(file, path: Path) -> str:  # type: ignore[no-untyped-def]
    """A few lines: what it is, of how many weights, in which matrices most."""
    chosen, size = file.num_chosen, file.num_weights
    shares = sorted(((int(part.chosen.sum()) / part.chosen.numel(), name) for name, part in file.parts.items()))
    lines = [
        f"{path}: {file.kind} by {file.method}, {path.stat().st_size:,} bytes",
        f"chosen    {chosen:,} of {size:,} weights in {len(file.parts)} matrices, {100 * chosen / max(size, 1):.3g} %",
        f"base      matrices with hash {file.base[:12]}",
    ]
    if shares:
        (low, least), (high, most) = shares[0], shares[-1]
        lines.append(f"matrices  from {100 * low:.3g} % of {least} to {100 * high:.3g} % of {most}")
    if file.dense:
        lines.append(f"beside    {', '.join(file.dense)}, whole")
    if file.about:
        lines.append(f"from      step {file.about['step']} of run {file.about['config']['name']}")
    return "\n".join(lines)
