"""A transformer written plainly, with our modules' weights: what objectives are compared with."""

import torch
from einops import rearrange
from torch.nn.functional import conv2d

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized(images):
    """uint8 images as floats, each channel less its mean and over its deviation."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (images / 255 - mean) / std


def embed(backbone, pixels):
    """A convolution over the whole image."""
    projection, patch = backbone.patch_embed.proj, backbone.patch_size
    return conv2d(pixels, projection.weight, projection.bias, stride=patch).flatten(2).transpose(1, 2)


def patches_of(pixels, patch):
    return rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def by_patch(target):
    """Each patch less its mean, over its deviation."""
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


def attend(layer, x):
    batch, length, width = x.shape
    parts = layer.qkv(x).reshape(batch, length, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (parts[0] @ parts[1].transpose(-2, -1) / parts[0].shape[-1] ** 0.5).softmax(-1)
    return layer.proj((weights @ parts[2]).transpose(1, 2).reshape(batch, length, width))


def transform(blocks, norm, x):
    for block in blocks:
        x = x + block.ls1(attend(block.attn, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return norm(x)


def with_prefix(backbone, x):
    """Class token and registers, with their positions where they have some, in front of x (B, L, D)."""
    slots = backbone.pos_embed.shape[1] - backbone.grid.num_patches
    front = [token for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    if not front:
        return x
    front = torch.cat(front, 1) + (backbone.pos_embed[:, :slots] if slots else 0)
    return torch.cat([front.expand(len(x), -1, -1), x], 1)


def positions(backbone):
    """Of patches, (1, N, D)."""
    return backbone.pos_embed[:, backbone.pos_embed.shape[1] - backbone.grid.num_patches :]
