"""Combinations of a segmentation's settings, and of label maps with other objectives, that cannot be meant."""

from __future__ import annotations

from pretrain.backbones.base import BackboneConfig
from pretrain.data.settings import DataConfig
from pretrain.engine.settings import OptimConfig
from pretrain.errors import ConfigError
from pretrain.objectives.base import ObjectiveConfig
from pretrain.objectives.segment import SegmentConfig
from pretrain.ranges import Range, check_ranges

_IN_A_BYTE: Range = ("a whole number from 0 to 255", lambda v: 0 <= v <= 255)
_NAME: Range = ("the extension of a member, without its first dot: seg.png, say", lambda v: bool(v) and v[0] != ".")
_RANGES = {"map_first": _IN_A_BYTE, "map_void": _IN_A_BYTE, "maps": _NAME}


def check_segment(objective: ObjectiveConfig, backbone: BackboneConfig, data: DataConfig, optim: OptimConfig) -> None:
    """Raises ConfigError for the first such combination, of whatever objective."""
    check_ranges(vars(data), _RANGES, "data.")
    if not isinstance(objective, SegmentConfig):
        if data.maps is not None:
            name = type(objective).__name__
            raise ConfigError(f"data.maps={data.maps} has no effect: {name} uses no label maps; set data.maps=none")
        return
    _check_maps(objective, data)
    if "tokenizer" in backbone.answers:
        raise ConfigError(
            f"objective=SegmentConfig reads an encoder's blocks, and {type(backbone).__name__} has none; use a "
            "ViTConfig or an IllamaConfig"
        )
    depth = backbone.dimensions()[1]
    if objective.layers is not None and (objective.head == "linear" or objective.layers[-1] >= depth):
        shown = ",".join(map(str, objective.layers))
        why = "no effect with objective.head=linear" if objective.head == "linear" else f"blocks above {depth - 1}"
        raise ConfigError(f"objective.layers={shown} has {why}; set objective.layers=none, or others")
    if objective.frozen:
        _check_frozen(backbone, optim)


def _check_maps(objective: SegmentConfig, data: DataConfig) -> None:
    if data.maps is None:
        raise ConfigError(
            "objective=SegmentConfig learns the class of every pixel from label maps, and data.maps=none; set "
            "data.maps=seg.png, say, as the members beside the images are called"
        )
    if data.train == "embedded":
        raise ConfigError("data.train=embedded: these photographs have no label maps; give shards that have them")
    if data.rand_augment is not None:
        raise ConfigError(
            f"data.rand_augment={data.rand_augment} moves what label maps mark; set data.rand_augment=none"
        )
    if len(data.map_names) not in (0, objective.pixel_classes) or len(set(data.map_names)) < len(data.map_names):
        raise ConfigError(
            f"data.map_names has {len(data.map_names)} names, {len(set(data.map_names))} of them different, and "
            f"objective.pixel_classes={objective.pixel_classes}; give each class a name of its own, or none at all"
        )
    first, last = data.map_first, data.map_first + objective.pixel_classes - 1
    if last > 255 or (data.map_void is not None and first <= data.map_void <= last):
        raise ConfigError(
            f"data.map_first={first} and objective.pixel_classes={objective.pixel_classes} make classes of the numbers "
            f"{first} to {last}; they must be at most 255, and data.map_void={data.map_void} none of them"
        )


def _check_frozen(backbone: BackboneConfig, optim: OptimConfig) -> None:
    dropped = getattr(backbone, "drop_path", 0.0)
    for name, value, off in (("backbone.drop_path", dropped, 0.0), ("optim.layer_decay", optim.layer_decay, None)):
        if value != off:
            raise ConfigError(
                f"{name}={value} is for an encoder that is trained, and objective.frozen=true leaves it as it is; set "
                f"{name}={'none' if off is None else '0'}"
            )
