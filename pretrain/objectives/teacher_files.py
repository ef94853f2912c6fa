"""Finds a teacher: a name of timm's with weights from a file, or a folder with a run of ours, an export or Hugging
Face's weights. Files are safetensors, or torch's read with weights_only=True: nothing here can run code, and nothing
is downloaded."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masking.mask import Grid
from pretrain.backbones.base import BackboneConfig
from pretrain.backbones.positions import resize_positions
from pretrain.config_json import from_json
from pretrain.engine.published import encoder_of, read_newest
from pretrain.errors import CheckpointError, ConfigError
from pretrain.objectives.teacher_encoders import OwnEncoder, TeacherEncoder, TimmEncoder
from pretrain.objectives.teacher_huggingface import KINDS, as_timm, normalisation
from pretrain.timm_shim import import_timm
from pretrain.weights_file import read_settings, read_state, weights_in

RANDOM = "random"
_HERE = "objective.teacher.model"
_FOLDER = f"{_HERE} is a run, an export, or a folder with Hugging Face's config.json"
_NOT_USED = ("head", "fc_norm.", "norm.")  # what a model has behind its last block
_Unfit = (RuntimeError, ValueError, KeyError, AssertionError, AttributeError, TypeError)


def open_teacher(model: str, weights: str | None, grid: Grid) -> TeacherEncoder:
    """The teacher that model and weights name (see TeacherConfig), for crops cut into grid: on the CPU, float32.
    Raises ConfigError."""
    path = Path(model)
    if path.is_dir() and (path / "ckpt").is_dir():
        encoder: TeacherEncoder = _from_run(path, weights or "ema", grid)
    elif path.is_dir() or path.suffix == ".safetensors":
        if weights is not None:
            raise ConfigError(f"objective.teacher.weights={weights} has no effect: the weights are those of {model}")
        encoder = _from_folder(path, grid)
    else:
        encoder = _from_name(model, weights, grid)
    if len(encoder.blocks) < 2:
        raise ConfigError(f"{_HERE}={model} has {len(encoder.blocks)} block; a teacher needs 2 or more")
    return encoder


def _from_run(run_dir: Path, weights: str, grid: Grid) -> OwnEncoder:
    """The encoder of a run's newest checkpoint, its positions resized to grid."""
    if weights not in ("ema", "model"):
        raise ConfigError(f"objective.teacher.weights={weights}: {run_dir} is a run, whose weights are ema or model")
    source = str(run_dir / "config.json")
    try:
        settings = read_settings(run_dir / "config.json", _FOLDER)
        data, config = settings["data"], from_json(settings["backbone"], source)
        height, width = (side // config.patch_size for side in data["image_size"])
        normal = data["in_chans"], tuple(data["mean"]), tuple(data["std"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{_HERE}={run_dir}: {source} is not the config of a run ({error})") from error
    try:
        state = encoder_of(read_newest(run_dir, weights).state)
    except CheckpointError as error:
        raise ConfigError(f"{_HERE}={run_dir}: {error}") from error
    own = Grid(height, width)
    if own != grid:
        state = state | {"pos_embed": _resized(config, state["pos_embed"], own, grid, run_dir)}
    backbone = config.build(grid, *normal)
    _load(backbone, state, str(run_dir))
    return OwnEncoder(backbone)


def _resized(config: BackboneConfig, table: Tensor, own: Grid, grid: Grid, run_dir: Path) -> Tensor:
    if type(config).__name__ != "ViTConfig":
        raise ConfigError(
            f"{_HERE}={run_dir} is an encoder of {own.height}x{own.width} patches whose places cannot be resized, and "
            f"the student's grid is {grid.height}x{grid.width}; use a ViT, or make the grids equal by data.image_size"
        )
    return resize_positions(table, own, grid)


def _from_folder(path: Path, grid: Grid) -> TimmEncoder:
    """An encoder with the config.json of timm's hub format (our exports are such) or of Hugging Face beside it."""
    folder = path if path.is_dir() else path.parent
    settings = read_settings(folder / "config.json", _FOLDER)
    file = weights_in(folder) if path.is_dir() else path
    if "architecture" in settings:
        about = settings.get("pretrained_cfg") or {}
        args = dict(settings.get("model_args") or {})
        _check_shape(path, str(settings["architecture"]), args)
        model = _timm_model(str(settings["architecture"]), grid, str(path), **args)
        about = {**model.pretrained_cfg, **about}
        _load_timm(model, read_state(file), str(file))
        return TimmEncoder(model, grid, about["mean"], about["std"])
    if settings.get("model_type") not in KINDS:
        raise ConfigError(
            f"{_HERE}={path}: its config.json names no architecture of timm's, and model_type="
            f"{settings.get('model_type')!r}; of Hugging Face's models {', '.join(KINDS)} can teach"
        )
    try:
        shape, state = as_timm(settings, read_state(file), grid)
    except _Unfit as error:
        raise ConfigError(f"{_HERE}={path}: its weights are not what its config.json says ({error})") from error
    model = import_timm().models.vision_transformer.VisionTransformer(**shape)
    _load_timm(model, state, str(file), convert=False)
    preprocessor = folder / "preprocessor_config.json"
    mean, std = normalisation(settings, read_settings(preprocessor, _FOLDER) if preprocessor.exists() else {})
    return TimmEncoder(model, grid, mean, std)


def _check_shape(path: Path, name: str, args: dict[str, Any]) -> None:
    """A stranger's config.json may say how the model is made, and no more: timm would also fetch what it names (a name
    such as hf-hub:..., pretrained, checkpoint_path)."""
    timm = import_timm()
    known = inspect.signature(timm.models.vision_transformer.VisionTransformer).parameters
    more = sorted(set(args) - set(known))
    if not timm.is_model(name) or more:
        what = f"model_args {', '.join(more)}" if more else f"the architecture {name!r}"
        raise ConfigError(f"{_HERE}={path}: its config.json has {what}, and no shape of a plain ViT of timm's")


def _from_name(name: str, weights: str | None, grid: Grid) -> TimmEncoder:
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{_HERE}={name} is neither a folder nor a model of timm's{hint}")
    if weights is None:
        raise ConfigError(
            f"{_HERE}={name} needs objective.teacher.weights: a safetensors file, or one of torch's; nothing is "
            "downloaded here"
        )
    if weights != RANDOM and not Path(weights).is_file():
        raise ConfigError(f"objective.teacher.weights={weights} does not exist; give the file of {name}'s weights")
    torch.manual_seed(0)  # every process draws the same random teacher
    model = _timm_model(name, grid, name)
    if weights != RANDOM:
        _load_timm(model, read_state(Path(weights)), weights)
    return TimmEncoder(model, grid, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def _timm_model(name: str, grid: Grid, source: str, **args: Any) -> Any:
    """timm's model of that name for an input of grid's patches; its pretrained_cfg has its normalisation."""
    timm = import_timm()
    plain = timm.models.vision_transformer.VisionTransformer
    try:
        with torch.device("meta"):
            shape = timm.create_model(name, num_classes=0, **args)
        if not isinstance(shape, plain):
            kind = type(shape).__name__
            raise ConfigError(f"{_HERE}={source} is a {kind}; a teacher is a plain ViT, as those of CLIP and DINO are")
        patch = shape.patch_embed.patch_size
        args["img_size"] = (grid.height * patch[0], grid.width * patch[1])
        return timm.create_model(name, num_classes=0, **args)
    except ConfigError:
        raise
    except _Unfit as error:
        raise ConfigError(f"{_HERE}={source}: timm cannot make {name} with {args} ({error})") from error


def _load_timm(model: Any, state: dict[str, Tensor], source: str, *, convert: bool = True) -> None:
    """Fills model with a state dict in any of the forms that timm reads; what is behind the last block may lack."""
    if convert:
        try:
            state = import_timm().models.vision_transformer.checkpoint_filter_fn(state, model)
        except _Unfit as error:
            raise ConfigError(f"the weights in {source} are not those of {_HERE} ({error})") from error
    own = model.state_dict()
    kept = {name: state.get(name, own[name]) for name in own if name.startswith(_NOT_USED)}
    given = {name: tensor for name, tensor in state.items() if not name.startswith(_NOT_USED)}
    _load(model, given | kept, source)


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ConfigError(f"the weights in {source} do not fit {_HERE}: {lines[:300]}") from error
