"""An experiment as a value: one Python file in configs/ builds it, the command line overrides it, the run keeps it as JSON.

A config file defines `config() -> Config`. Overrides are `a.b=value`, typed by the field they name. What cannot be meant
is a ConfigError here, before DeepSpeed is imported and before anything is allocated, opened or spawned.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from masking.draw import MaskStrategy
from masking.strategies import all_strategies
from pretrain import strict_json
from pretrain.backbones.base import BackboneConfig
from pretrain.config_json import from_json
from pretrain.data.settings import DataConfig
from pretrain.engine import fsops
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.objectives.base import ObjectiveConfig
from pretrain.objectives.mto_r import MtoRConfig
from pretrain.sparse.config import SparseConfig
from pretrain.tracking.settings import TrackingConfig

_NONE = ("None", "none", "off")


@dataclass(frozen=True)
class Config:
    """One pretraining run, whole: the samples, masks and updates of every step follow from it and the dataset alone."""

    name: str  # name of the run: its directory below runs_dir, its name in W&B
    data: DataConfig  # where the images are and how they are cut
    backbone: BackboneConfig  # the encoder that is pretrained
    objective: ObjectiveConfig  # what is predicted, and by which decoder or head
    mask: MaskStrategy | None = None  # which patches are hidden; None for objectives that hide none
    epochs: float | None = None  # length of the run in passes over the data; give this or steps
    steps: int | None = None  # length of the run in optimizer steps; give this or epochs
    init_from: str | None = None  # weights to begin with: a run, an export, a file, a Hugging Face folder, a timm name; None: drawn from seed
    init_parts: Literal["all", "encoder", "fitting"] = "all"  # all that init_from has and all must fit; the encoder alone; or what fits
    seed: int = 0  # every draw of the run comes from it
    runs_dir: str = "runs"  # directory that holds the run directories
    optim: OptimConfig = field(default_factory=OptimConfig)  # optimizer and learning rate
    engine: EngineConfig = field(default_factory=EngineConfig)  # DeepSpeed and numbers
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # when state is saved
    tracking: TrackingConfig = field(default_factory=TrackingConfig)  # metrics, pictures, W&B
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # features measured during training
    mto: MtoRConfig | None = None  # masked-token optimisation as reconstructed here; None: off
    sparse: SparseConfig | None = None  # the encoder of init_from stays, and something sparse about it is trained; None: off

    @property
    def run_dir(self) -> Path:
        """Directory of this run."""
        return Path(self.runs_dir) / self.name


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config that `config()` in the Python file at path returns, with `a.b=value` overrides applied and its
    types checked. Raises ConfigError; `pretrain.checks.check` looks at combinations."""
    path = Path(path)
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise ConfigError(f"config file {path} does not exist{_did_you_mean(str(path), near)}")
    spec = importlib.util.spec_from_file_location(f"lacuna_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {path} is not a Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build = module.config
        config = build()
    except ConfigError:
        raise
    except TypeError as error:
        raise ConfigError(f"config file {path}: {_explained(error, vars(module))}") from error
    except Exception as error:  # whatever a user's file raises is one sentence to them
        raise ConfigError(f"config file {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"config() in {path} returned {type(config).__name__}; it must return pretrain.config.Config")
    config = apply_overrides(config, overrides)
    check_types(config)
    return config


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """config with each `a.b=value` applied; unknown keys and wrong types are ConfigErrors that name the key."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r} has no '='; write it as section.field=value, for example seed=1")
        config = _replace(config, key.strip().split("."), value.strip(), key.strip())
    return config


def check_types(value: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first field, at any depth, whose value is not of its declared type."""
    for name, hint in typing.get_type_hints(type(value)).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        part, key = getattr(value, name), f"{prefix}{name}"
        if not _conforms(part, hint):
            raise ConfigError(f"{key} is {part!r} ({type(part).__name__}); it must be {_words(hint)}")
        for place, inner in enumerate(part if isinstance(part, tuple) else ()):
            if dataclasses.is_dataclass(inner):
                check_types(inner, f"{key}[{place}].")
        if dataclasses.is_dataclass(part):
            check_types(part, f"{key}.")


def to_json(value: Any) -> Any:
    """config as JSON values; a dataclass becomes an object with its "type" first."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        parts = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **parts}
    return [to_json(item) for item in value] if isinstance(value, tuple | list) else value


def write_config(config: Config, path: Path) -> None:
    """Writes config as JSON; a kill leaves what was there before, or this."""
    fsops.replace(path, json.dumps(to_json(config), indent=2) + "\n")


def read_config(path: str | Path) -> Config:
    """The config a run was started with, from its config.json. Raises ConfigError when there is none or it is not ours."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give the directory of a run, for example runs/first")
    try:
        config = from_json(strict_json.loads(path.read_text()), str(path))
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise ConfigError(f"{path} is not the config of a run: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path} does not hold the config of a run")
    check_types(config)
    return config


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of config by its override key, in order: {"data.batch_size": 256, ...}."""
    leaves: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        part, key = getattr(value, item.name), f"{prefix}{item.name}"
        leaves |= flatten(part, f"{key}.") if dataclasses.is_dataclass(part) else {key: part}
    return leaves


def _replace(node: Any, path: list[str], text: str, key: str) -> Any:
    names = [f.name for f in dataclasses.fields(node)]
    if path[0] not in names:
        where = ".".join(key.split(".")[: -len(path)]) or "the config"
        raise ConfigError(f"unknown setting {key!r}{_did_you_mean(path[0], names)}; {where} has {', '.join(names)}")
    current, hint = getattr(node, path[0]), typing.get_type_hints(type(node))[path[0]]
    if len(path) > 1:
        if current is None:  # a group that is off begins with its defaults
            current = next((part() for part in get_args(hint) if dataclasses.is_dataclass(part)), None)  # type: ignore[operator]
        if not dataclasses.is_dataclass(current):
            raise ConfigError(f"unknown setting {key!r}: {path[0]} is a single value; write {path[0]}=value")
        return dataclasses.replace(node, **{path[0]: _replace(current, path[1:], text, key)})
    if MaskStrategy in (hint, *get_args(hint)) and text not in _NONE:
        return dataclasses.replace(node, **{path[0]: _strategy(text, current, key)})
    if dataclasses.is_dataclass(current) and not (text in _NONE and _conforms(None, hint)):
        inner = ", ".join(f"{key}.{f.name}" for f in dataclasses.fields(current))
        raise ConfigError(f"{key} is a group of settings; set one of {inner}")
    return dataclasses.replace(node, **{path[0]: _parse(text, hint, key)})


def _strategy(name: str, current: MaskStrategy | None, key: str) -> MaskStrategy:
    """The strategy of that class with its settings as they come, and the ratio of the one it replaces, if any."""
    known = {kind.__name__: kind for kind in all_strategies()}
    if name not in known:
        raise ConfigError(
            f"{key}={name!r} is not a mask strategy{_did_you_mean(name, list(known))}; there are {', '.join(known)}"
        )
    if current is None:
        return known[name]()
    return next(iter(known[name].variants(current.ratio).values()), known[name]())


def _parse(text: str, hint: Any, key: str) -> Any:
    if text in _NONE and _conforms(None, hint):
        return None
    if text.lower() in ("true", "false") and _conforms(True, hint):
        return text.lower() == "true"
    if _conforms(text, hint):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        value = tuple(parts) if _tuple_hint(hint) else text
    value = tuple(value) if isinstance(value, list) else value
    if _tuple_hint(hint) and not isinstance(value, tuple) and value is not None:
        value = (value,)
    if not _conforms(value, hint):
        raise ConfigError(f"{key}={text}: it must be {_words(hint)}")
    return _as_float(value, hint)


def _tuple_hint(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(get_origin(part) is tuple for part in get_args(hint))


def _as_float(value: Any, hint: Any) -> Any:
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and float in (hint, *get_args(hint))
        and not _conforms_int(hint)
    ):
        return float(value)
    return value


def _conforms_int(hint: Any) -> bool:
    return hint is int or int in get_args(hint)


def _conforms(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return any(_conforms(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_conforms(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_conforms, value, args))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    if getattr(hint, "_is_protocol", False):  # whoever fits it is a component: a frozen dataclass
        wanted = [name for name in vars(hint) if not name.startswith("_")]
        return dataclasses.is_dataclass(value) and all(hasattr(type(value), name) for name in wanted)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(arg) for arg in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"values separated by commas, each {_words(args[0])}"
        return f"{len(args)} values separated by a comma, each {_words(args[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _explained(error: TypeError, known: dict[str, Any]) -> str:
    """error in words, and where a component was given a setting it has not, or not given one it needs, those it has."""
    found = re.match(r"(\w+)\.__init__\(\) (?:got an unexpected keyword argument '(\w+)'|missing )", str(error))
    kind = known.get(found[1]) if found else None
    if found is None or not dataclasses.is_dataclass(kind):
        return f"TypeError: {error}"
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    wrong = f"{found[1]} has no setting {found[2]!r}{_did_you_mean(found[2], names)}" if found[2] else str(error)
    return f"{wrong}; {found[1]} has {', '.join(names)}"


def _did_you_mean(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
