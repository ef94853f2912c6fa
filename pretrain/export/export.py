"""The way out: a run's encoder in the form of whoever reads it next.

Nothing is published that was not proved: files are written as a draft, loaded by their reader, compared, and only then
renamed. Where the reader is not installed, names and shapes are compared with those it is known to have, and the report
says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.backbones.resize import resize_positions_of
from pretrain.config import Config, read_config
from pretrain.engine.load import Loaded, load_backbone
from pretrain.errors import ConfigError
from pretrain.export.card import card_text
from pretrain.export.graph import ONNX, TORCH_EXPORT
from pretrain.export.place import Place, drafted, place_for
from pretrain.export.report import ExportReport
from pretrain.export.target import Job, Target
from pretrain.export.to_detectron2 import DETECTRON2
from pretrain.export.to_huggingface import HUGGINGFACE, HUGGINGFACE_MAE
from pretrain.export.to_mmlab import MMDET, MMSEG
from pretrain.export.to_plain import PLAIN
from pretrain.export.to_timm import TIMM

TARGETS: dict[str, Target] = {
    "timm": TIMM,
    "huggingface": HUGGINGFACE,
    "huggingface-mae": HUGGINGFACE_MAE,
    "mmseg": MMSEG,
    "mmdet": MMDET,
    "detectron2": DETECTRON2,
    "plain": PLAIN,
    "onnx": ONNX,
    "torch-export": TORCH_EXPORT,
}


def export(
    run_dir: Path,
    to: str,
    out: Path,
    weights: str = "ema",
    step: int | None = None,
    *,
    force: bool = False,
    image_size: tuple[int, int] | None = None,
    license_name: str | None = None,
) -> ExportReport:
    """Writes the encoder of a run's checkpoint to out for the target named by to: a file, with what belongs to it
    beside it, or a folder that gets all. image_size (height, width) resizes the positions; license_name is named in
    config and card.

    Raises ConfigError for what cannot be meant, before a weight is read, and ExportError where its reader has another
    encoder; no file is left then."""
    target = target_of(to)
    place = _place(target, to, Path(out), force=force)
    if image_size is not None and target.with_objective:
        raise ConfigError(
            f"--image-size {image_size[0]},{image_size[1]}: --to {to} writes the decoder too, whose positions are of "
            "the run's size; leave it out, or export the encoder alone"
        )
    config = read_config(Path(run_dir) / "config.json")
    target.check(_of_size(config, image_size))
    loaded = load_backbone(run_dir, weights, step, with_objective=target.with_objective)
    if image_size is not None:
        loaded = replace(loaded, backbone=resized(loaded.backbone, loaded.config, image_size))
    return _write(loaded, target, place, license_name, Path(run_dir))


def write_export(
    loaded: Loaded, to: str, out: Path, license_name: str | None = None, *, force: bool = False
) -> ExportReport:
    """The same for an encoder that is loaded already."""
    target = target_of(to)
    place = _place(target, to, out, force=force)
    target.check(loaded.config)
    return _write(loaded, target, place, license_name, None)


def target_of(to: str) -> Target:
    """The target of that name. Raises ConfigError."""
    if to not in TARGETS:
        raise ConfigError(f"--to {to} is not known; there are {', '.join(TARGETS)}")
    return TARGETS[to]


def resized(backbone: Backbone, config: Config, image_size: tuple[int, int]) -> Backbone:
    """A copy of backbone for images of image_size (height, width)."""
    p = backbone.patch_size
    if any(size < p or size % p for size in image_size):
        raise ConfigError(f"image size {image_size}: height and width must be multiples of the patch size, {p}")
    grid = Grid(image_size[0] // p, image_size[1] // p)
    copy = config.backbone.build(grid, backbone.in_chans, backbone.mean, backbone.std)
    state = backbone.state_dict()
    table = resize_positions_of(backbone, state["pos_embed"], backbone.grid, grid)
    copy.load_state_dict(state | {"pos_embed": table})
    return copy.eval()


def _of_size(config: Config, image_size: tuple[int, int] | None) -> Config:
    return config if image_size is None else replace(config, data=replace(config.data, image_size=image_size))


def _place(target: Target, to: str, out: Path, *, force: bool) -> Place:
    return place_for(out, to, target.main, target.beside, only_folder=target.only_folder, force=force)


def _write(
    loaded: Loaded, target: Target, place: Place, license_name: str | None, run_dir: Path | None
) -> ExportReport:
    with drafted(place) as draft:
        written = target.write(Job(loaded, draft / place.main, place.weights, license_name))
        report = ExportReport(place.weights, place.folder / place.card, loaded.step, loaded.which, written)
        (draft / place.card).write_text(card_text(report, loaded, target, license_name, run_dir))
    return report
