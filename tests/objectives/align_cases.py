"""Small students and teachers, photographs to show them, and teachers' folders as other tools leave them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from skimage import data

from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.vit import ViTConfig
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.teachers import TeacherConfig
from pretrain.timm_shim import import_timm
from tests.objectives.plain import MEAN, STD

GRID, PATCH = Grid(8, 8), 8


def student(depth=3, width=48, grid=GRID, patch=PATCH, **settings):
    """A ViT with fresh weights."""
    torch.manual_seed(depth)
    return ViTConfig("tiny", patch_size=patch, width=width, depth=depth, heads=4, **settings).build(grid, 3, MEAN, STD)


def photographs(number, side=64):
    """Windows of real photographs, (number, 3, side, side) uint8."""
    sources = [torch.from_numpy(source()).permute(2, 0, 1) for source in (data.astronaut, data.chelsea, data.coffee)]
    out = []
    for index in range(number):
        source = sources[index % 3]
        rng = generator(0, "window", index)
        top, left = (int(torch.randint(0, length - side, (), generator=rng)) for length in source.shape[1:])
        out.append(source[:, top : top + side, left : left + side])
    return torch.stack(out)


def masks(number, visible, grid=GRID, seed=1):
    """Random masks that keep so many patches."""
    return Mask.cut(torch.rand(number, grid.num_patches, generator=generator(seed)), visible)


def folder_of(path, architecture="vit_tiny_patch16_224", seed=0, mean=MEAN, std=STD, **args):
    """A folder in timm's hub format with random weights, and timm's model itself: (path, model)."""
    timm = import_timm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(architecture, num_classes=0, **args).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # no wrong place may give the right result
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "model.safetensors")
    about = {"architecture": architecture, "model_args": args, "pretrained_cfg": {"mean": mean, "std": std}}
    (path / "config.json").write_text(json.dumps(about))
    return str(path), model


def small_teacher(path, depth=3, width=48, patch=PATCH, **args):
    """The config of a frozen teacher on GRID, from a folder."""
    shape = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 4}
    return TeacherConfig(folder_of(path, img_size=[GRID.height * patch] * 2, **shape, **args)[0])


def aligned(teacher, backbone, **settings):
    """The objective for backbone, taught by teacher."""
    torch.manual_seed(1)
    return MaskAlignConfig(teacher, **settings).build(backbone)


def loss_of(objective, backbone, images, mask):
    """The mean loss of images, ()."""
    return objective(backbone, images, mask, objective.target(images))[0]["align"].mean()
