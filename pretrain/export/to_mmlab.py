"""To OpenMMLab: the names of mmpretrain's VisionTransformer, which mmdet and mmseg take as a backbone, or of mmseg's
own MAE, whose blocks are scaled and have relative positions; those start at zero there, where they change nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.backbones.base import Backbone
from pretrain.config import Config
from pretrain.export.parity import by_contract, library, proved, require_names, sample
from pretrain.export.report import ExportError, Parity, Written
from pretrain.export.shapes import Shapes, Size, mmpretrain_vit
from pretrain.export.target import Job, Target
from pretrain.export.tensors import renamed, require_plain, tensors_of
from pretrain.init.dialects import ENCODER, MMLAB
from pretrain.timm_shim import ensure_torchvision
from pretrain.weights_file import read_state

_NORM = 'norm_cfg=dict(type="LN", eps=1e-6)'  # mmseg's default is 1e-5


def _own_name(name: str) -> str:
    return MMLAB.own_name(name).removeprefix(ENCODER)


def _write_mmdet(job: Job) -> Written:
    backbone = job.loaded.backbone
    width, depth, heads = job.loaded.config.backbone.dimensions()
    wanted = mmpretrain_vit(Size.of(backbone), scaled=False)
    found = _saved(job, tensors_of(backbone), wanted)
    parity = _mmpretrain_parity(backbone, found, wanted, (width, depth, heads))
    call = (
        f'backbone = dict(type="mmpretrain.VisionTransformer", out_type="featmap", '
        f"arch=dict(embed_dims={width}, num_layers={depth}, num_heads={heads}, feedforward_channels={4 * width}), "
        f'{_common(backbone)}, init_cfg=dict(type="Pretrained", checkpoint="{job.final}"))'
    )
    return Written("mmpretrain.VisionTransformer", call, parity, notes=(_pixels(backbone),))


def _write_mmseg(job: Job) -> Written:
    backbone = job.loaded.backbone
    width, depth, heads = job.loaded.config.backbone.dimensions()
    own = tensors_of(backbone)
    for index in range(depth):  # without layer scale every branch counts as it is
        own = {f"blocks.{index}.ls{branch}.gamma": torch.ones(width) for branch in (1, 2)} | own
    wanted = mmpretrain_vit(Size.of(backbone), scaled=True)
    found = _saved(job, own, wanted)
    parity = _mmseg_parity(backbone, found, wanted, (width, depth, heads))
    call = (
        f'backbone = dict(type="MAE", embed_dims={width}, num_layers={depth}, num_heads={heads}, {_common(backbone)}, '
        f'{_NORM}, init_values=1.0, final_norm=True, init_cfg=dict(type="Pretrained", checkpoint="{job.final}"))'
    )
    fresh = "relative_position_bias_table of each layer starts at zero in mmseg, where it changes nothing"
    return Written("mmseg.MAE", call, parity, notes=(fresh, _pixels(backbone)))


def _common(backbone: Backbone) -> str:
    height, width = (side * backbone.patch_size for side in (backbone.grid.height, backbone.grid.width))
    return f"img_size=({height}, {width}), patch_size={backbone.patch_size}, in_channels={backbone.in_chans}"


def _pixels(backbone: Backbone) -> str:
    mean, std = ([round(255 * value, 3) for value in values] for values in (backbone.mean, backbone.std))
    return f"pixels: data_preprocessor = dict(mean={mean}, std={std}, bgr_to_rgb=True)"


def _saved(job: Job, own: dict[str, Tensor], wanted: Shapes) -> dict[str, Tensor]:
    """What a reader of the file finds: it is read back without running anything."""
    torch.save({"state_dict": renamed(own, wanted, _own_name)}, job.file)
    return dict(read_state(job.file)["state_dict"])


@torch.no_grad()
def _mmpretrain_parity(
    backbone: Backbone, found: dict[str, Tensor], wanted: Shapes, dimensions: tuple[int, int, int]
) -> Parity:
    ensure_torchvision()
    module = library("mmpretrain.models.backbones.vision_transformer")
    if module is None:
        return by_contract(found, wanted, "mmpretrain", "mmpretrain is not installed here, or not whole")
    width, depth, heads = dimensions
    arch = {"embed_dims": width, "num_layers": depth, "num_heads": heads, "feedforward_channels": 4 * width}
    model = module.VisionTransformer(arch, **_size(backbone), out_type="raw")
    _load(model, found, "mmpretrain's VisionTransformer", ())
    seen = sample(backbone)
    return proved(model(seen.normal)[-1], seen.sequence, len(found), f"mmpretrain {_version('mmpretrain')}")


@torch.no_grad()
def _mmseg_parity(
    backbone: Backbone, found: dict[str, Tensor], wanted: Shapes, dimensions: tuple[int, int, int]
) -> Parity:
    ensure_torchvision()
    module = library("mmseg.models.backbones.mae")
    if module is None:
        return by_contract(found, wanted, "mmseg's MAE", "mmseg is not installed here, or not whole")
    width, depth, heads = dimensions
    shape = {"embed_dims": width, "num_layers": depth, "num_heads": heads, "out_indices": [depth - 1]}
    norm = {"type": "LN", "eps": 1e-6}
    model = module.MAE(**shape, **_size(backbone), norm_cfg=norm, init_values=1.0, final_norm=True)
    _load(model, found, "mmseg's MAE", ("relative_position_bias_table", "relative_position_index"))
    seen = sample(backbone)
    theirs = model(seen.normal)[-1].flatten(2).mT  # (B, N, D): it gives patches alone
    return proved(theirs, seen.sequence[:, 1:], len(found), f"mmseg {_version('mmseg')}")


def _size(backbone: Backbone) -> dict[str, Any]:
    size = (backbone.grid.height * backbone.patch_size, backbone.grid.width * backbone.patch_size)
    return {"img_size": size, "patch_size": backbone.patch_size, "in_channels": backbone.in_chans}


def _load(model: Any, found: dict[str, Tensor], by: str, fresh: tuple[str, ...]) -> None:
    """Loads found into model, which may have tensors of its own whose names end in those of fresh."""
    theirs = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith(fresh)}
    require_names(found, theirs, by)
    model.eval()  # which gives nothing back there
    missing, unexpected = model.load_state_dict(found, strict=False)
    if unexpected or [name for name in missing if not name.endswith(fresh)]:
        raise ExportError(f"{by} misses {missing[:5]} and does not know {unexpected[:5]}; nothing was written")


def _version(package: str) -> str:
    found = library(package)
    return "" if found is None else str(found.__version__)


def _check_mmdet(config: Config) -> None:
    require_plain(config, "mmdet")


def _check_mmseg(config: Config) -> None:
    require_plain(config, "mmseg", scaled=True)


MMDET = Target("mmpretrain's VisionTransformer, for mmdet and mmseg", "model.pth", _check_mmdet, _write_mmdet)
MMSEG = Target("mmseg's MAE", "model.pth", _check_mmseg, _write_mmseg)
