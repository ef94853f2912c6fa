"""Weights from anywhere, under our names: a run, one of our exports, a file or folder of timm's, Hugging Face's or the
published checkpoints of MAE, MaskAlign, iLLaMA and MAGE. Nothing in a file can run, and nothing is downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from masking.mask import Grid
from pretrain.backbones.saved import FORMAT, read_about
from pretrain.config import read_config
from pretrain.engine.published import encoder_of, read_newest
from pretrain.errors import ConfigError
from pretrain.init.dialects import ENCODER, OBJECTIVE, TIMM, channels_first, recognise, translated, unwrapped
from pretrain.objectives.teacher_huggingface import (
    KINDS,
    encoder_tensors,
    normalisation,
    own_grid,
    own_names,
)
from pretrain.timm_shim import import_timm
from pretrain.weights_file import read_settings, read_state, weights_in

Normal = tuple[tuple[float, ...], tuple[float, ...]]
_EPS = 1e-6  # of our norms


@dataclass(frozen=True)
class Foreign:
    """Somebody's weights under the names of our whole model ("backbone.", "objective."), float32 on the host."""

    state: dict[str, Tensor]
    origin: str  # what was read, for people
    dialect: str  # whose names it had
    grid: Grid | None = None  # of its positions, where something says so; None: a square is tried
    dropped: tuple[str, ...] = ()  # its own names of what has no place here: classifiers, teachers, fixed positions
    normal: Normal | None = None  # mean and std per channel that it was trained with, where something says so
    objective: str | None = None  # name of our objective's config that the rest of the state is of
    notes: tuple[str, ...] = ()  # what a user should know

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's tensors by the names they have in the encoder."""
        return encoder_of(self.state)


def read_encoder(source: str, weights: str = "ema") -> Foreign:
    """The weights that source names: the directory of a run (weights says which: "ema", where it keeps that, or
    "model"), a folder with config.json, a file of tensors, or a model of timm's whose weights are in the cache of the
    Hugging Face hub on this machine. Raises ConfigError for what is not there or not known."""
    path = Path(source)
    if (path / "ckpt").is_dir():
        return _from_run(path, weights)
    if path.is_dir():
        return _from_folder(path, weights_in(path), is_whole=True)
    if path.is_file():
        return _from_folder(path.parent, path, is_whole=False) if path.suffix == ".safetensors" else _from_file(path)
    return _from_timm(source.removeprefix("timm:"))


def _from_run(run_dir: Path, weights: str) -> Foreign:
    config = read_config(run_dir / "config.json")
    found = read_newest(run_dir, weights)
    (height, width), patch = config.data.image_size, config.backbone.patch_size
    return Foreign(
        found.state,
        f"{run_dir} (step {found.commit.step}, {found.which} weights)",
        "our names",
        Grid(height // patch, width // patch),
        normal=(config.data.mean, config.data.std),
        objective=type(config.objective).__name__,
    )


def _from_folder(folder: Path, file: Path, *, is_whole: bool) -> Foreign:
    """Weights with a config.json beside them, of our own plain exports, of timm or of transformers. is_whole: the
    folder was asked for, and not just a file that may lie beside anything."""
    if not (folder / "config.json").is_file():
        return _from_file(file)
    settings = read_settings(folder / "config.json", "give the folder of a run or an export, or a file of weights")
    if settings.get("format") == FORMAT:
        about = read_about(folder / "config.json")
        state = {f"{ENCODER}{name}": tensor for name, tensor in unwrapped(read_state(file)).items()}
        return Foreign(state, str(file), "our names", about.grid, normal=(about.mean, about.std))
    if "architecture" in settings:
        return _with_timms_settings(file, settings)
    if settings.get("model_type") in KINDS:
        return _from_transformers(folder, file, settings)
    if not is_whole:
        return _from_file(file)
    raise ConfigError(
        f"{folder}/config.json is of none of our exports, names no architecture of timm's, and model_type="
        f"{settings.get('model_type')!r}; of transformers' models {', '.join(KINDS)} are read"
    )


def _with_timms_settings(file: Path, settings: Mapping[str, Any]) -> Foreign:
    found = _from_file(file)
    about = {**(settings.get("pretrained_cfg") or {}), **(settings.get("model_args") or {})}
    size = about.get("img_size") or about.get("input_size", [])[1:]
    sides = [size, size] if isinstance(size, int) else list(size)
    patch = found.encoder["patch_embed.proj.weight"].shape[-1]
    grid = Grid(sides[0] // patch, sides[1] // patch) if len(sides) == 2 else None
    normal = (tuple(about["mean"]), tuple(about["std"])) if "mean" in about and "std" in about else None
    return Foreign(found.state, found.origin, found.dialect, grid, found.dropped, normal)


def _from_transformers(folder: Path, file: Path, settings: Mapping[str, Any]) -> Foreign:
    """A model of one of KINDS: its encoder, and the decoder of a masked autoencoder."""
    kind = KINDS[settings["model_type"]]
    settings = {**kind.defaults, **(settings.get("vision_config") or settings)}
    if settings["hidden_act"] != "gelu":
        raise ConfigError(f"{folder} uses {settings['hidden_act']} between the layers of its MLPs, and our ViT gelu")
    state = unwrapped(read_state(file))
    encoder = encoder_tensors(state, kind.prefix)
    own = {f"{ENCODER}{name}": tensor for name, tensor in own_names(encoder).items()}
    decoder = {name: tensor for name, tensor in state.items() if name.startswith("decoder.")}
    if settings["model_type"] == "vit_mae" and decoder:
        own |= _decoder_of(decoder, own[f"{ENCODER}patch_embed.proj.weight"])
    kept = {kind.prefix + name for name in encoder} | set(encoder) | set(decoder)
    dropped = [name for name in state if name not in kept] + [name for name in decoder if "pos_embed" in name]
    preprocessor = folder / "preprocessor_config.json"
    said = read_settings(preprocessor, "it says how images are normalised") if preprocessor.exists() else {}
    mean, std = normalisation(settings, said)
    eps = settings["layer_norm_eps"]
    notes = (f"its norms add {eps:g} to a variance, and ours {_EPS:g}",) if eps != _EPS else ()
    objective = "PixelMAEConfig" if decoder else None
    name = f"transformers' names of {settings['model_type']}"
    normal = (tuple(mean), tuple(std))
    return Foreign(own, str(file), name, own_grid(settings), tuple(dropped), normal, objective, notes)


def _decoder_of(decoder: Mapping[str, Tensor], projection: Tensor) -> dict[str, Tensor]:
    """The decoder of transformers' ViTMAE under our names."""
    bare = {name.removeprefix("decoder.").removeprefix("decoder_"): tensor for name, tensor in decoder.items()}
    bare.pop("pos_embed", None)
    own = {name.replace("pred.", "head."): tensor for name, tensor in own_names(bare).items()}
    for name in ("head.weight", "head.bias"):
        own[name] = channels_first(own[name], projection)
    return {f"{OBJECTIVE}decoder.{name}": tensor for name, tensor in own.items()}


def _from_file(path: Path) -> Foreign:
    state = unwrapped(read_state(path))
    dialect = recognise(set(state), str(path))
    own, dropped = translated(state, dialect)
    objective = {"MAE": "PixelMAEConfig", "MAGE": "MAGEConfig"}.get(dialect.name.partition("'")[0])
    return Foreign(own, str(path), dialect.name, dropped=dropped, objective=objective)


def find_timm(name: str) -> tuple[str, Path | None]:
    """The hub's repository with the weights of a model of timm's, and the file of them where it is in the cache on this
    machine. Raises ConfigError for a name that timm has not."""
    timm = import_timm()
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name} is no run, folder, file, nor model of timm's{hint}")
    about = timm.get_pretrained_cfg(name)
    repository = f"{getattr(about, 'hf_hub_id', None) or 'timm/'}"
    repository += f"{about.architecture}.{about.tag}" if repository.endswith("/") else ""
    return repository, _in_cache(repository)


def _from_timm(name: str) -> Foreign:
    """Weights of a model of timm's from the hub's cache."""
    repository, file = find_timm(name)
    if file is None:
        raise ConfigError(
            f"{name}: the weights of {repository} are not in the hub's cache of this machine, and nothing is "
            f"downloaded here; fetch them once with `hf download {repository}`, or give a file of them"
        )
    own, dropped = translated(unwrapped(read_state(file)), TIMM)
    about = import_timm().get_pretrained_cfg(name)
    mean, std = tuple(about.mean), tuple(about.std)
    return Foreign(own, f"{repository} ({file.name})", TIMM.name, dropped=dropped, normal=(mean, std))


def _in_cache(repository: str) -> Path | None:
    """The file of weights of a repository of the hub that is on this machine already."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None
