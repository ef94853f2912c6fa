"""Settings that cannot be meant, made from every key of every shipped config: goal G14.

A case changes one thing: an override with a wrong name, type, sign or size, or a config file with a keyword left out or
misspelt. Whether that is legal is said by LIMITS below, written from the settings' meanings and not from the checks:
what is legal must be taken or refused as a combination, what is not must be refused in one sentence that names the key
and says what is allowed. Nothing but a ConfigError may come out."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import random
import re
import subprocess
import sys
import tempfile
import time
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.checks import check
from pretrain.config import flatten, load_config
from pretrain.errors import ConfigError
from tests.campaign import Counts, counted

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py")
_WITHOUT_A_RUN = {  # a tokenizer that is there before one is trained, and the side of its patches
    "maskgit_cifar": ("palette", 4), "joint_maskgit_cifar": ("palette", 4), "mage_cifar": ("palette", 4),
    "maskgit_in256": ("palette", 16), "mage_vitb16": ("palette", 16), "mar_base_in256": ("pixels", 16),
}  # fmt: skip
NO_FILE = {
    name: (f"backbone.tokenizer.path={path}", f"backbone.tokenizer.patch_size={side}")
    for name, (path, side) in _WITHOUT_A_RUN.items()
}
TEXTS = ("what", "", "-1", "0", "1", "0.5", "2.5", "1e999", "-1e999", "nan", "9" * 40)
LIMITS = {  # the numbers each key may be, as mathematicians write them
    "[1,": (
        "steps data.batch_size data.in_chans data.crops_per_decode data.max_pixels data.prefetch data.lanes "
        "data.block data.error_run backbone.patch_size backbone.depth backbone.heads backbone.width backbone.blocks "
        "backbone.classes backbone.num_prefix backbone.quantiser.channels backbone.quantiser.code_dim "
        "backbone.tokenizer.patch_size checkpoint.every_steps checkpoint.milestone_every engine.accumulation "
        "engine.max_skipped evaluation.every_steps evaluation.k evaluation.max_images tracking.log_every "
        "tracking.panels_every tracking.panel_images tracking.samples_every mask.num_planes mask.passes mask.side "
        "mask.unit objective.decoder_depth objective.decoder_heads objective.decoder_width objective.head.batch_mul "
        "objective.head.depth objective.head.width objective.head_width objective.num_classes objective.num_levels"
    ),
    "[0,": (
        "data.workers backbone.registers backbone.unmasked_blocks "
        "objective.head_depth seed objective.head_init_std data.mixup data.cutmix optim.weight_decay "
        "backbone.soft_mask.cutoff objective.gradient mask.second mto.lambda_e mto.lambda_r mto.lambda_spa mto.p "
        "backbone.quantiser.commitment backbone.quantiser.weight backbone.quantiser.revive_ratio"
    ),
    "[0,1]": (
        "data.flip_prob data.erase_prob data.mix_prob data.mix_switch_prob data.error_ratio backbone.class_drop "
        "optim.warmup optim.final_lr_ratio backbone.soft_mask.start backbone.soft_mask.end mto.rho0 mto.ramp "
        "mask.ratio.high mask.ratio.low objective.decoder_weights objective.drop_ratio"
    ),
    "[0,1)": (
        "backbone.drop_path backbone.dropout objective.label_smoothing objective.replace_ratio objective.head_drop "
        "backbone.quantiser.decay"
    ),
    "(0,1)": "engine.ema_decay mask.ratio.hidden objective.teacher.ema_decay",
    "(0,1]": "objective.predict_ratio optim.layer_decay",
    "(0,": (
        "checkpoint.grace_s epochs data.timeout_s data.cache_gb "
        "optim.base_lr optim.eps optim.clip_norm engine.collective_timeout_s "
        "evaluation.temperature backbone.layer_scale backbone.tokenizer.scale objective.head.clip mask.ratio.std "
        "mask.temperature mto.tau mto.frozen_token mask.sigmas"
    ),
    "[2,": "checkpoint.keep",
    "[0,3]": "engine.zero_stage",
    "[0,255]": "data.map_first data.map_void",
    "[2,255]": "objective.pixel_classes",
    "[-1,": "evaluation.layer",
    "(-inf,": "mask.ratio.mode mask.seed",
    "[3,": "backbone.quantiser.levels",
    "[16,": "backbone.quantiser.num_codes",
}
LIMIT_OF = {key: limit for limit, keys in LIMITS.items() for key in keys.split()}
PAIRS = {  # and triples
    "objective.layers", "data.image_size", "data.crop_scale", "data.crop_aspect", "optim.betas", "data.mean",
    "data.std",
}  # fmt: skip
_ALLOWED = re.compile(
    r"must|takes|need|\buse\b|\bset\b|give|make|write|there (are|is)|\bhas\b|did you mean|nearest|allows|or one of"
)


@dataclass(frozen=True)
class Case:
    """One change to one shipped config."""

    config: str
    kind: str  # override, drop or rename
    key: str  # of the setting; of a keyword in the file
    text: str = ""  # the override's value
    place: int = 0  # of the keyword among all in the file


@cache
def all_cases() -> list[Case]:
    """Every change, the rarest keys first in turn, in an order that never changes."""
    cases = []
    for key, configs in sorted(_configs_of_keys().items()):
        for number, text in enumerate(TEXTS):
            cases.append(Case(configs[number % len(configs)], "override", key, text))
        cases.append(Case(configs[0], "override", f"{key}x", "1"))
    for path in CONFIGS:
        for place, keyword in enumerate(_keywords(ast.parse(path.read_text()))):
            cases += [Case(path.stem, kind, str(keyword.arg), place=place) for kind in ("drop", "rename")]
    random.Random("bad configs").shuffle(cases)
    return cases


def bad_config_campaign(number: int, first: int = 0) -> Counts:
    """Each case in this process, as `lacuna config` would read it."""
    cases, failures = all_cases()[first : first + number], []
    counts = {"refused": 0, "legal_and_taken": 0, "legal_alone_but_not_together": 0}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            said, legal = outcome(case, Path(folder)), is_legal(case)
            fault = fault_of(case, said, legal)
            if fault:
                failures.append(f"{case}: {fault}")
            counts["refused" if not legal else "legal_alone_but_not_together" if said else "legal_and_taken"] += 1
    return counted(len(cases), failures, all_cases=len(all_cases()), **counts)


def command_campaign(number: int, first: int = 0) -> Counts:
    """Illegal overrides given to the real `lacuna train`: code 78, one line, no DeepSpeed, nothing written."""
    bad = [case for case in all_cases() if case.kind == "override" and not is_legal(case)][first : first + number]
    program = (
        "import sys; from launch.cli import main; code = main(sys.argv[1:]); "
        "print('deepspeed' in sys.modules); sys.exit(code)"
    )
    failures, slowest = [], 0.0
    for case in bad:
        with tempfile.TemporaryDirectory() as folder:
            words = ["train", f"configs/{case.config}.py", *NO_FILE.get(case.config, ()), f"runs_dir={folder}"]
            began = time.monotonic()
            done = subprocess.run([sys.executable, "-c", program, *words, f"{case.key}={case.text}"], cwd=ROOT,
                                  capture_output=True, text=True)  # fmt: skip
            slowest = max(slowest, time.monotonic() - began)
            fine = done.returncode == 78 and done.stdout.strip() == "False" and done.stderr.count("\n") == 1
            if not fine or not done.stderr.startswith("E78 ") or any(Path(folder).iterdir()):
                failures.append(f"{case}: code {done.returncode}, {done.stdout[-200:]}{done.stderr[-300:]}")
    return counted(len(bad), failures, worst_command_s=round(slowest, 1))


def outcome(case: Case, folder: Path) -> str | None:
    """What is said of the case, None where it is taken; a crash raises nothing here but is said as one."""
    path, overrides = ROOT / "configs" / f"{case.config}.py", [*NO_FILE.get(case.config, ())]
    if case.kind == "override":
        overrides.append(f"{case.key}={case.text}")
    else:
        path = _rewritten(path, case, folder)
    try:
        check(load_config(path, overrides))
    except ConfigError as error:
        return str(error)
    except Exception as error:
        return f"CRASH {type(error).__name__}: {error}"
    return None


def fault_of(case: Case, said: str | None, legal: bool) -> str | None:
    """What is wrong with the answer."""
    if said is None:
        return None if legal else "taken"
    if said.startswith("CRASH") or "\n" in said or len(said) > 700:
        return said
    if legal:
        return None
    leaf = case.key.rpartition(".")[2]
    if leaf not in said:
        return f"does not name {case.key}: {said}"
    return None if _ALLOWED.search(said) else f"does not say what is allowed: {said}"


def is_legal(case: Case) -> bool:
    """Whether the change may be meant, were the rest of the config to go along."""
    if case.kind == "rename":
        return False
    if case.kind == "drop":
        return _keyword_has_default(case)
    hints = _hints(case.config)
    return case.key in hints and any(_is_legal(case.key, part, case.text) for part in _parts(hints[case.key]))


def _is_legal(key: str, hint: Any, text: str) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return text in map(str, typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return key not in PAIRS and typing.get_origin(inner) is None and _is_legal(key, inner, text)
    if hint is str:
        return key != "name" or bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text))
    if hint is int and not re.fullmatch(r"-?\d+", text):
        return False
    if hint is bool or hint is type(None) or not re.fullmatch(r"-?[\d.]+(e\d+)?", text):
        return False  # no text of ours says true, false or none
    return _within(float(text), LIMIT_OF[key]) and (key != "seed" or float(text) < 2**63)


def _within(value: float, limit: str) -> bool:
    low, high = limit[1:].rstrip(")]").split(",")
    above = value >= float(low) if limit[0] == "[" else value > float(low)
    below = not high or (value <= float(high) if limit[-1] == "]" else value < float(high))
    return above and below and math.isfinite(value)


def _parts(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


@cache
def _shipped(name: str) -> Any:
    return load_config(ROOT / "configs" / f"{name}.py", NO_FILE.get(name, ()))


@cache
def _hints(name: str) -> dict[str, Any]:
    """The declared type of every leaf of a shipped config."""
    found: dict[str, Any] = {}

    def look(value: Any, prefix: str) -> None:
        for field, hint in typing.get_type_hints(type(value)).items():
            if typing.get_origin(hint) is typing.ClassVar:
                continue
            if dataclasses.is_dataclass(getattr(value, field)):
                look(getattr(value, field), f"{prefix}{field}.")
            else:
                found[f"{prefix}{field}"] = hint

    look(_shipped(name), "")
    return found


def _configs_of_keys() -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for path in CONFIGS:
        for key in flatten(_shipped(path.stem)):
            if key not in ("mask", "mto", "sparse", "backbone.soft_mask"):  # groups that are off here
                keys.setdefault(key, []).append(path.stem)
    return keys


def _keywords(tree: ast.AST) -> list[ast.keyword]:
    return [
        keyword for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords if keyword.arg
    ]


def _rewritten(path: Path, case: Case, folder: Path) -> Path:
    """The config file without its keyword number case.place, or with that misspelt."""
    tree = ast.parse(path.read_text())
    keyword = _keywords(tree)[case.place]
    if case.kind == "rename":
        keyword.arg = f"{case.key}x"
    else:
        call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and keyword in node.keywords)
        call.keywords.remove(keyword)
    changed = folder / path.name
    changed.write_text(ast.unparse(tree))
    return changed


def _keyword_has_default(case: Case) -> bool:
    """Whether the class that a keyword belongs to can do without it."""
    path = ROOT / "configs" / f"{case.config}.py"
    tree = ast.parse(path.read_text())
    keyword = _keywords(tree)[case.place]
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and keyword in node.keywords)
    spec = importlib.util.spec_from_file_location(f"shipped_{path.stem}", path)
    assert spec and spec.loader and isinstance(call.func, ast.Name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind = getattr(module, call.func.id)
    field = next(field for field in dataclasses.fields(kind) if field.name == case.key)
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing
