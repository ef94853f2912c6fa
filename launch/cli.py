"""The `lacuna` command: one verb a task. What a verb needs is imported when it runs, so `--help` answers at once.

Exit codes say what to do: 0 done, 75 saved, run me again, 76 data unavailable, 77 no loadable checkpoint,
78 bad configuration, 79 numerical abort, 80 a newer attempt owns the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import segment, sparse
from launch.evaluate import add_options as add_evaluate_options
from launch.evaluate import evaluate
from launch.export import add_options as add_export_options
from launch.export import export
from launch.follow import add_run_option, add_runs_options, cancel, runs, show, tail
from launch.generate import add_options as add_generate_options
from launch.generate import generate
from launch.interleaved import Parser
from launch.submit import add_options as add_submit_options
from launch.submit import submit
from pretrain.engine.trust import TRUST
from pretrain.errors import LacunaError

_EPILOG = """exit codes: 0 done, 75 saved: run it again, 76 data unavailable, 77 no loadable checkpoint,
78 bad configuration, 79 numbers not finite, 80 a newer attempt owns the run"""

_READERS = ("train", "finetune", "submit", "evaluate", "segment", "generate", "tokenize", "export")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the process's exit code. A refusal is one line on stderr."""
    options = _parser().parse_args(arguments)
    TRUST.everyone = options.trust
    try:
        options.handler(options)
    except LacunaError as error:
        _refuse(error.exit_code, str(error))
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        _refuse(130, "interrupted by the keyboard; what was saved stays saved")
        return 130
    return 0


def _refuse(code: int, text: str) -> None:
    sys.stdout.flush()
    print(f"E{code} {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lacuna",
        description="Masked-image-modelling pretraining: pack, pretrain, resume, evaluate, export.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--local_rank", help=argparse.SUPPRESS
    )  # DeepSpeed's launcher adds it; LOCAL_RANK says the same
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_train(verbs)
    _add_cluster(verbs)
    _add_data(verbs)
    add_evaluate_options(_add(verbs, "evaluate", evaluate, "measure frozen features on labelled images, side by side"))
    segment.add_options(_add(verbs, "segment", segment.segment, "measure a segmentation run, and draw what it finds"))
    _add_generate(verbs)
    _add_results(verbs)
    _add_masks(verbs)
    doctor = _add(verbs, "doctor", _doctor, "say what this machine can do, and what to mend")
    doctor.add_argument("--data", help="shards to look at as well")
    doctor.add_argument("--attention", action="store_true", help="say as well what computes attention here, and why")
    return parser


def _add(verbs, name: str, handler: Callable, help_text: str, **more) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def,type-arg]
    verb = verbs.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    verb.set_defaults(handler=handler, trust=False)
    if name in _READERS:
        verb.add_argument("--trust", action="store_true", help="read checkpoints that others could have written, too")
    return verb


class _SettingsHelp(argparse.Action):
    """--help of train and config: the options, then every setting of the default config."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        parser.print_help()
        from launch.settings_help import all_settings

        print("\nsettings, with their defaults; override any as section.field=value:\n")
        print(all_settings())
        parser.exit()


def _add_train(verbs) -> None:  # type: ignore[no-untyped-def]
    train = _add(
        verbs,
        "train",
        _train,
        "pretrain from a config; the same command goes on after any interruption",
        add_help=False,
        epilog="example: lacuna train configs/mae_vitb16.py data.train='shards/*.tar' name=first",
    )
    says = "train a classifier from pretrained weights, and measure it; goes on after any interruption"
    example = "example: lacuna finetune configs/finetune_vitb16.py init_from=runs/first data.val='val/*.tar'"
    finetune = _add(verbs, "finetune", _finetune, says, add_help=False, epilog=example)
    finetune.add_argument("--from-scratch", action="store_true", help="begin with drawn weights: the baseline")
    for verb in (train, finetune):
        verb.add_argument("config", help="a Python file with config(), see configs/")
        verb.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings that differ from it")
        verb.add_argument("--fresh", action="store_true", help="move an earlier run of this name aside and start anew")
        verb.add_argument("--allow-change", action="store_true", help="go on although settings of the run have changed")
        verb.add_argument("-h", "--help", nargs=0, action=_SettingsHelp, help="show this, and every setting")
    config = _add(verbs, "config", _config, "check a config and show every setting with its meaning")
    config.add_argument("config", help="a Python file with config(), see configs/")
    config.add_argument("overrides", nargs="*", metavar="section.field=value")
    config.add_argument("--json", action="store_true", help="print the resolved config as JSON")
    config.add_argument("--world-size", type=int, default=1, help="check it for so many processes (default 1)")


def _add_cluster(verbs) -> None:  # type: ignore[no-untyped-def]
    add_submit_options(_add(verbs, "submit", submit, "hand a run, or a sweep of runs, to SLURM"))
    add_runs_options(_add(verbs, "runs", runs, "list runs: state, step, loss, last checkpoint, job"))
    add_run_option(_add(verbs, "show", show, "say how one run stands, and what to do next"))
    follow = _add(verbs, "tail", tail, "print the end of a run's log, or of its metrics")
    add_run_option(follow)
    follow.add_argument("-f", "--follow", action="store_true", help="go on printing what is added")
    follow.add_argument("-n", "--lines", type=int, default=20, help="how many lines to begin with (default 20)")
    add_run_option(_add(verbs, "cancel", cancel, "end a run's job, or ask its process here to save and leave"))


def _add_data(verbs) -> None:  # type: ignore[no-untyped-def]
    pack = _add(verbs, "pack", _pack, "write images as webdataset shards with an index; resumable")
    pack.add_argument("source", help="a folder (class folders become labels), a text list (path, tab, label), or tars")
    pack.add_argument("out", type=Path, help="directory for the shards")
    pack.add_argument("--size", type=int, metavar="PX", help="re-encode with this short side; default: original bytes")
    pack.add_argument("--maps", type=Path, help="a folder of label maps: for each image, a PNG of its name")
    pack.add_argument("--quality", type=int, default=90, help="JPEG quality when re-encoding (default 90)")
    pack.add_argument("--shard-mb", type=float, default=256, help="size of a shard, megabytes (default 256)")
    pack.add_argument(
        "--val-share", type=float, default=0.0, help="share of the images put into val shards (default 0)"
    )
    pack.add_argument("--seed", type=int, default=0, help="of the order images are written in (default 0)")
    tokens = _add(verbs, "tokenize", _tokenize, "write shards of tokens, which runs read in place of images; resumable")
    tokens.add_argument("run", type=Path, help="run that trained a tokenizer, or a published tokenizer's file")
    tokens.add_argument("shards", help="shards of images: a pattern or a folder of tars")
    tokens.add_argument("out", type=Path, help="directory for the shards of tokens")
    tokens.add_argument("--image-size", metavar="H,W", help="cut images to this size (default: as the run has it)")
    tokens.add_argument("--weights", choices=("ema", "model"), help="which weights (default ema, where kept)")
    tokens.add_argument("--batch-size", type=int, default=64, help="images at once (default 64)")
    tokens.add_argument("--workers", type=int, default=1, help="processes that decode images (default 1)")
    index = _add(verbs, "index", _index, "validate foreign shards and write the index a run reads")
    index.add_argument("shards", help="a path, glob or brace range, for example 'in1k-{000000..001023}.tar'")
    index.add_argument(
        "--verify",
        choices=("header", "decode"),
        default="decode",
        help="look at image headers only, or decode every image once (default)",
    )
    index.add_argument(
        "--dedupe",
        choices=("refuse", "keep-first"),
        default="refuse",
        help="what to do about a key that comes twice (default refuse)",
    )


def _add_generate(verbs) -> None:  # type: ignore[no-untyped-def]
    add_generate_options(_add(verbs, "generate", generate, "sample images from a run of MaskGIT, MAGE or MAR"))


def _add_results(verbs) -> None:  # type: ignore[no-untyped-def]
    add_export_options(_add(verbs, "export", export, "write the encoder for downstream code, proved by its reader"))
    sparse.add_options(_add(verbs, "sparse", sparse.sparse, "change an encoder by few of its weights"))
    report = _add(verbs, "report", _report, "write report.html of a run: curves, pictures, evaluation, config")
    report.add_argument("run", type=Path, help="run directory, for example runs/first")


def _add_masks(verbs) -> None:  # type: ignore[no-untyped-def]
    masks = _add(verbs, "masks", _masks, "draw every mask strategy, with its statistics, as one picture")
    masks.add_argument("-o", "--out", type=Path, default=Path("masks.png"), help="picture to write (default masks.png)")
    masks.add_argument("--grid", default="14x14", help="patches down x across (default 14x14)")
    masks.add_argument("--ratio", type=float, default=0.75, help="share of patches hidden (default 0.75)")
    masks.add_argument("--on", type=Path, nargs="+", default=[], metavar="PHOTO", help="show the masks on photographs")
    masks.add_argument(
        "--strategy", action="append", default=[], metavar="NAME", help="draw this one only; may be given again"
    )
    masks.add_argument("--seed", type=int, default=0, help="of the masks (default 0)")


def _train(options: argparse.Namespace) -> None:
    from launch.start import start

    start(options.config, options.overrides, fresh=options.fresh, allow_change=options.allow_change)


def _finetune(options: argparse.Namespace) -> None:
    from launch.finetune import finetune, measuring

    if (run_dir := finetune(options)) is not None:
        measure = _parser().parse_args(measuring(run_dir))
        measure.handler(measure)


def _config(options: argparse.Namespace) -> None:
    from pretrain.checks import check
    from pretrain.config import load_config, to_json
    from pretrain.config_help import render

    config = load_config(options.config, options.overrides)
    check(config, options.world_size)
    print(json.dumps(to_json(config), indent=2) if options.json else render(config))


def _pack(options: argparse.Namespace) -> None:
    from launch.verbs import pack

    pack(options)


def _tokenize(options: argparse.Namespace) -> None:
    from launch.verbs import tokenize

    tokenize(options)


def _index(options: argparse.Namespace) -> None:
    from launch.verbs import index

    index(options)


def _report(options: argparse.Namespace) -> None:
    from pretrain.tracking.report import write_report

    print(write_report(options.run))


def _masks(options: argparse.Namespace) -> None:
    from launch.verbs import masks

    masks(options)


def _doctor(options: argparse.Namespace) -> None:
    from launch.doctor import doctor

    doctor(options.data, attention=options.attention)


if __name__ == "__main__":
    sys.exit(main())
