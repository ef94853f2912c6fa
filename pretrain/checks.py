"""Combinations of settings that cannot be meant, each refused in one sentence with its fix."""

from __future__ import annotations

import re

from masking.draw import MaskStrategy
from masking.mask import Grid
from masking.rng import generator
from pretrain.config import Config, flatten
from pretrain.data.rand_augment import check_changes
from pretrain.errors import ConfigError
from pretrain.init.check import check_init
from pretrain.objectives.base import NeedsNoneVisible, ObjectiveConfig, Taught
from pretrain.objectives.mage import MAGEConfig
from pretrain.objectives.mar import MARConfig
from pretrain.objectives.maskgit import MaskGITConfig
from pretrain.objectives.segment_check import check_segment
from pretrain.ranges import AT_LEAST_0, AT_LEAST_1, POSITIVE, POSITIVE_SHARE, RANGE_IN_1, SHARE, Range, check_ranges
from pretrain.tokenizers.token_vit import TokenViTConfig

_RANGES: dict[str, Range] = {
    "epochs": POSITIVE,
    "steps": AT_LEAST_1,
    "seed": ("from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63),
    "data.image_size": ("two lengths in pixels, each above 0", lambda v: min(v) > 0),
    "data.in_chans": AT_LEAST_1,
    "data.std": ("above 0 for every channel", lambda v: bool(v) and min(v) > 0),
    "data.batch_size": AT_LEAST_1,
    "data.crop_scale": RANGE_IN_1,
    "data.crop_aspect": ("two ratios, 0 < low <= high", lambda v: 0 < v[0] <= v[1]),
    "data.flip_prob": SHARE,
    "data.erase_prob": SHARE,
    "data.mixup": AT_LEAST_0,
    "data.cutmix": AT_LEAST_0,
    "data.mix_prob": SHARE,
    "data.mix_switch_prob": SHARE,
    "data.crops_per_decode": AT_LEAST_1,
    "data.max_pixels": AT_LEAST_1,
    "data.workers": AT_LEAST_0,
    "data.prefetch": AT_LEAST_1,
    "data.timeout_s": POSITIVE,
    "data.lanes": AT_LEAST_1,
    "data.block": AT_LEAST_1,
    "data.error_ratio": SHARE,
    "data.error_run": AT_LEAST_1,
    "data.cache_gb": POSITIVE,
    "mask.ratio.std": POSITIVE,
    "mask.ratio.low": SHARE,
    "mask.ratio.high": SHARE,
    "optim.base_lr": POSITIVE,
    "optim.betas": ("two numbers, each from 0 to below 1", lambda v: all(0 <= b < 1 for b in v)),
    "optim.eps": POSITIVE,
    "optim.weight_decay": AT_LEAST_0,
    "optim.layer_decay": POSITIVE_SHARE,
    "optim.warmup": SHARE,
    "optim.final_lr_ratio": SHARE,
    "optim.clip_norm": POSITIVE,
    "engine.accumulation": AT_LEAST_1,
    "engine.ema_decay": ("above 0 and below 1", lambda v: 0 < v < 1),
    "engine.max_skipped": AT_LEAST_1,
    "engine.collective_timeout_s": POSITIVE,
    "checkpoint.grace_s": POSITIVE,
    "checkpoint.every_steps": AT_LEAST_1,
    "checkpoint.keep": ("2 or more, so that a damaged newest one has a predecessor", lambda v: v >= 2),
    "checkpoint.milestone_every": AT_LEAST_1,
    "tracking.log_every": AT_LEAST_1,
    "tracking.panels_every": AT_LEAST_1,
    "tracking.panel_images": AT_LEAST_1,
    "tracking.samples_every": AT_LEAST_1,
    "evaluation.every_steps": AT_LEAST_1,
    "evaluation.methods": ("at least one method", lambda v: len(v) > 0),
    "evaluation.k": AT_LEAST_1,
    "evaluation.temperature": POSITIVE,
    "evaluation.max_images": AT_LEAST_1,
}


_GENERATING = (MaskGITConfig, MAGEConfig, MARConfig)


def check(config: Config, world_size: int = 1) -> None:
    """Raises ConfigError for the first setting, or combination, that cannot be meant on world_size processes."""
    check_ranges(flatten(config), _RANGES)
    config.backbone.check()
    _check_name_and_length(config)
    check_init(config)
    _check_batch(config, world_size)
    _check_channels(config)
    _check_grid(config)
    config.objective.check()
    _check_pair(config)
    check_segment(config.objective, config.backbone, config.data, config.optim)
    _check_layers(config)
    if config.mto is not None:
        config.mto.check(config.objective, config.backbone)
    _check_mixing(config, world_size)
    check_changes(config.data)
    _check_evaluation(config)


def check_methods(objective: ObjectiveConfig, methods: tuple[str, ...], setting: str) -> None:
    """Raises ConfigError where methods of evaluation, as setting has them, ask for a classifier that objective has
    not."""
    if "head" in methods and objective.num_classes is None:
        raise ConfigError(
            f"{setting}={','.join(methods)}: head is the accuracy of the objective's own classifier, and "
            f"{type(objective).__name__} has none; leave knn, linear, or both"
        )


def _check_mixing(config: Config, world_size: int) -> None:
    data, objective = config.data, type(config.objective).__name__
    if not (data.mixup or data.cutmix):
        return
    if config.objective.num_classes is None:
        raise ConfigError(
            f"data.mixup={data.mixup} and data.cutmix={data.cutmix} mix labels with images, and {objective} uses no "
            "labels; set both to 0"
        )
    if data.batch_size // world_size % 2:
        raise ConfigError(
            f"data.batch_size={data.batch_size} gives each of {world_size} processes {data.batch_size // world_size} "
            f"images, and mixup and cutmix pair them; make it a multiple of {2 * world_size}"
        )


def _check_pair(config: Config) -> None:
    if isinstance(config.backbone, TokenViTConfig):
        if config.backbone.tokenizer.stored:
            _check_stored(config)
        config.backbone.tokenizer.kind(config.data.in_chans)
        if config.objective.asks not in ("codes", "values"):
            raise ConfigError(
                f"backbone=TokenViTConfig reads tokens, and objective={type(config.objective).__name__} predicts "
                "pixels or classes of images; use MaskGITConfig, MAGEConfig or MARConfig"
            )
    if config.tracking.samples_every is not None and not isinstance(config.objective, _GENERATING):
        raise ConfigError(
            f"tracking.samples_every={config.tracking.samples_every}: only MaskGIT, MAGE and MAR generate images, and "
            f"objective is {type(config.objective).__name__}; set it to none"
        )
    asked, objective, backbone = config.objective.asks, type(config.objective).__name__, type(config.backbone).__name__
    if asked is not None and asked not in config.backbone.answers:
        if asked == "class_token":
            raise ConfigError(
                f"objective.pool=cls needs a class token, and {backbone} has none; set objective.pool=mean, or "
                "backbone.class_token=true"
            )
        if asked == "tokenizer":
            raise ConfigError(
                f"objective={objective} trains a tokenizer, and backbone is {backbone}; use a ConvTokenizerConfig, as "
                "configs/tokenizer_fsq_cifar.py has it"
            )
        needs = {
            "questions": "an IllamaConfig with backbone.class_token=last",
            "prefix": "an IllamaConfig with backbone.mode=prefix",
            "codes": "a TokenViTConfig whose backbone.tokenizer gives ids (a run with FSQ or VQ, or palette)",
            "values": "a TokenViTConfig whose backbone.tokenizer gives values (pixels, or a run with KL)",
        }[asked]
        raise ConfigError(f"objective={objective} needs {needs}; backbone is {backbone} without")
    if isinstance(config.objective, Taught) and config.objective.follows_student and config.engine.zero_stage == 3:
        raise ConfigError(
            "the teacher is the student's average, and at engine.zero_stage=3 no process has the student's weights "
            "whole; use engine.zero_stage=2 or below"
        )


def _check_layers(config: Config) -> None:
    if config.optim.layer_decay is not None and "tokenizer" in config.backbone.answers:
        raise ConfigError(
            f"optim.layer_decay={config.optim.layer_decay} counts the encoder's blocks, and "
            f"{type(config.backbone).__name__} has none; set optim.layer_decay=none"
        )


def _check_stored(config: Config) -> None:
    """Tokens are read as they were written: only mirrored."""
    data, tracking = config.data, config.tracking
    wanted = (
        ("data.crop_scale", data.crop_scale, (1.0, 1.0), "1,1"),
        ("data.crop_aspect", data.crop_aspect, (1.0, 1.0), "1,1"),
        ("data.rand_augment", data.rand_augment, None, "none"),
        ("data.erase_prob", data.erase_prob, 0.0, "0"),
        ("tracking.panels_every", tracking.panels_every, None, "none"),
    )
    for name, value, only, text in wanted:
        if value != only:
            raise ConfigError(
                f"backbone.tokenizer.stored=true reads tokens, and {name}={value} is for images; set {name}={text}"
            )
    if data.image_size[0] != data.image_size[1]:
        raise ConfigError(
            f"data.image_size={data.image_size[0]},{data.image_size[1]}: grids of stored tokens must be square for "
            "now; store them so, or set backbone.tokenizer.stored=false"
        )


def _check_name_and_length(config: Config) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", config.name):
        raise ConfigError(
            f"name={config.name!r}; use letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    if (config.epochs is None) == (config.steps is None):
        given = "both are given" if config.epochs is not None else "neither is given"
        raise ConfigError(f"epochs and steps: {given}; give exactly one, for example steps=1000 epochs=none")


def _check_batch(config: Config, world_size: int) -> None:
    size, parts = config.data.batch_size, world_size * config.engine.accumulation
    if size % parts:
        raise ConfigError(
            f"data.batch_size={size} cannot be split over {world_size} processes x engine.accumulation="
            f"{config.engine.accumulation}; the nearest values that can are {_nearest(size, parts)}"
        )


def _check_channels(config: Config) -> None:
    data = config.data
    if isinstance(config.backbone, TokenViTConfig) and config.backbone.tokenizer.stored:
        return  # bytes of tokens, which nobody normalises
    for key, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != data.in_chans:
            raise ConfigError(
                f"data.{key} has {len(values)} values and data.in_chans={data.in_chans}; give one a channel"
            )


def _check_grid(config: Config) -> None:
    (height, width), patch = config.data.image_size, config.backbone.patch_size
    for name, length in (("height", height), ("width", width)):
        if length % patch:
            raise ConfigError(
                f"data.image_size={height},{width}: the {name} is not a multiple of backbone.patch_size={patch}; "
                f"the nearest that are: {_nearest(length, patch)}"
            )
    _check_mask(config, Grid(height // patch, width // patch))


def _check_mask(config: Config, grid: Grid) -> None:
    mask, least, objective = config.mask, config.objective.least_hidden, type(config.objective).__name__
    if least is None and mask is not None:
        raise ConfigError(f"mask={type(mask).__name__} has no effect: {objective} hides no patches; set mask=none")
    if mask is None:
        if least is not None:
            raise ConfigError(f"objective={objective} needs to know which patches are hidden; set mask=Uniform, say")
        if config.data.boxes is not None:
            raise ConfigError(f"data.boxes={config.data.boxes} has no effect without a mask; set data.boxes=none")
        return
    visible = mask.ratio.num_visible(grid, generator(config.seed, "check"))
    fewest = config.objective.least_visible if isinstance(config.objective, NeedsNoneVisible) else 1
    if not fewest <= visible <= grid.num_patches - (least or 0):
        raise ConfigError(
            f"mask.ratio leaves {visible} of {grid.num_patches} patches visible; need {fewest} to "
            f"{grid.num_patches - (least or 0)}: change the share that is hidden, data.image_size or "
            "backbone.patch_size"
        )
    _check_strategy(config, mask, grid, visible)


def _check_strategy(config: Config, mask: MaskStrategy, grid: Grid, visible: int) -> None:
    try:
        mask.check(grid, visible)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    name = type(mask).__name__
    if mask.guided_by == "objective" and not config.objective.gives_guidance:
        raise ConfigError(
            f"mask={name} is guided by the objective, and {type(config.objective).__name__} gives no importance of "
            "patches; set mask.guided_by=gradient"
        )
    if mask.guided_by == "boxes" and config.data.boxes is None:
        raise ConfigError(
            f"mask={name} is guided by boxes, and none are read; set data.boxes=xyxy or xywh, as the samples' json has "
            "them, or mask.guided_by=gradient"
        )
    if mask.guided_by != "boxes" and config.data.boxes is not None:
        raise ConfigError(
            f"data.boxes={config.data.boxes} has no effect: mask={name} is not guided by boxes; set data.boxes=none"
        )


def _check_evaluation(config: Config) -> None:
    evaluation, depth = config.evaluation, config.backbone.dimensions()[1]
    if evaluation.pool == "cls" and not config.backbone.has_class_token:
        raise ConfigError("evaluation.pool=cls needs backbone.class_token=true; or use evaluation.pool=mean")
    if not -1 <= evaluation.layer < depth:
        raise ConfigError(f"evaluation.layer={evaluation.layer}; blocks are 0 to {depth - 1}, or -1 for the last")
    check_methods(config.objective, evaluation.methods, "evaluation.methods")
    if config.data.val is None and config.data.train != "embedded" and evaluation.every_steps is not None:
        raise ConfigError(
            f"evaluation.every_steps={evaluation.every_steps} needs labelled images: give data.val='val/*.tar', "
            "or evaluation.every_steps=none"
        )


def _nearest(value: int, step: int) -> str:
    """The multiples of step around value, in words."""
    low = value // step * step
    return f"{low} or {low + step}" if low else f"{step}"
