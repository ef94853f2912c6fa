"""To detectron2's ViTDet: the part of the detector's backbone that is pretrained, as its checkpointer reads it.

There blocks see windows and no class token, and what comes behind them has no last norm, so features cannot be
compared: names and shapes are. The class token stays behind but for its row of the positions, which is cut off there
(pretrain_use_cls_token). Relative positions and the feature pyramid start fresh, as in detectron2's own recipes."""

from __future__ import annotations

import torch

from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.export.parity import by_contract
from pretrain.export.report import Written
from pretrain.export.shapes import Size, detectron2_vit
from pretrain.export.target import Job, Target
from pretrain.export.tensors import renamed, require_plain, tensors_of
from pretrain.init.dialects import DETECTRON2 as DIALECT
from pretrain.init.dialects import ENCODER
from pretrain.weights_file import read_state

_LEFT = ("cls_token", "norm.weight", "norm.bias")


def _check(config: Config) -> None:
    require_plain(config, "detectron2")
    height, width = config.data.image_size
    if height != width:
        raise ConfigError(
            f"--to detectron2: run {config.name} has data.image_size={height},{width}, and ViTDet takes positions of a "
            f"square; give --image-size {max(height, width)},{max(height, width)}"
        )


def _write(job: Job) -> Written:
    backbone = job.loaded.backbone
    wanted = detectron2_vit(Size.of(backbone))
    found = renamed(tensors_of(backbone), wanted, lambda name: DIALECT.own_name(name).removeprefix(ENCODER), _LEFT)
    torch.save({"model": found}, job.file)
    why = "ViTDet runs its blocks otherwise, without the class token, so there are no features to compare"
    parity = by_contract(read_state(job.file)["model"], wanted, "detectron2's ViT", why)
    width, depth, heads = job.loaded.config.backbone.dimensions()
    side = backbone.grid.height * backbone.patch_size
    net, p = "model.backbone.net", backbone.patch_size
    call = (
        f'train.init_checkpoint = "{job.final}"\n'
        f"{net}.embed_dim, {net}.depth, {net}.num_heads = {width}, {depth}, {heads}\n"
        f"{net}.patch_size, {net}.pretrain_img_size, {net}.pretrain_use_cls_token = {p}, {side}, True"
    )
    mean, std = ([round(255 * value, 3) for value in values] for values in (backbone.mean, backbone.std))
    notes = (
        "left out: the class token and the last norm, which ViTDet has not; rel_pos and simfp start fresh there",
        f"pixels: model.pixel_mean = {mean}, model.pixel_std = {std}, in RGB",
    )
    return Written("ViTDet's backbone.net", call, parity, notes=notes)


DETECTRON2 = Target("detectron2's ViTDet", "model.pth", _check, _write)
