"""Names and shapes that other libraries give a plain vision transformer, as their documentation and files have them:
what an export must hold where the library itself cannot be asked."""

from __future__ import annotations

from typing import NamedTuple

from pretrain.backbones.base import Backbone

Shapes = dict[str, tuple[int, ...]]


class Size(NamedTuple):
    """What the shapes depend on."""

    width: int
    depth: int
    patch_size: int
    in_chans: int
    num_positions: int  # patches and the class token

    @classmethod
    def of(cls, backbone: Backbone) -> Size:
        """An encoder's."""
        num = backbone.grid.num_patches + 1
        return cls(backbone.width, len(backbone.blocks), backbone.patch_size, backbone.in_chans, num)


def transformers_vit(size: Size) -> Shapes:
    """transformers' ViTModel without a pooler, as both major versions store it."""
    width, names = size.width, ("cls_token", "position_embeddings", "patch_embeddings.projection")
    return {
        **_ends(size, *map("embeddings.".__add__, names)),
        **_transformers_blocks("encoder.layer", size.depth, width),
        **_vectors("layernorm", width),
    }


def transformers_decoder(size: Size, width: int, depth: int) -> Shapes:
    """The decoder of transformers' ViTMAEForPreTraining, behind an encoder of that size."""
    num_values = size.in_chans * size.patch_size**2
    return {
        "decoder.mask_token": (1, 1, width),
        "decoder.decoder_pos_embed": (1, size.num_positions, width),
        **_linear("decoder.decoder_embed", width, size.width),
        **_transformers_blocks("decoder.decoder_layers", depth, width),
        **_vectors("decoder.decoder_norm", width),
        **_linear("decoder.decoder_pred", num_values, width),
    }


def mmpretrain_vit(size: Size, *, scaled: bool) -> Shapes:
    """OpenMMLab's vision transformers: mmpretrain's VisionTransformer, and mmseg's MAE, which is always scaled."""
    width, shapes = size.width, _ends(size, "cls_token", "pos_embed", "patch_embed.projection")
    for index in range(size.depth):
        layer = f"layers.{index}"
        shapes |= _vectors(f"{layer}.ln1", width) | _vectors(f"{layer}.ln2", width)
        shapes |= _linear(f"{layer}.attn.qkv", 3 * width, width) | _linear(f"{layer}.attn.proj", width, width)
        shapes |= _linear(f"{layer}.ffn.layers.0.0", 4 * width, width)
        shapes |= _linear(f"{layer}.ffn.layers.1", width, 4 * width)
        if scaled:
            shapes |= {f"{layer}.gamma_1": (width,), f"{layer}.gamma_2": (width,)}
    return shapes | _vectors("ln1", width)


def detectron2_vit(size: Size) -> Shapes:
    """The part of detectron2's ViTDet that is pretrained: no class token, no last norm, but the token's position."""
    width, net = size.width, "backbone.net."
    shapes = _ends(size, "cls_token", f"{net}pos_embed", f"{net}patch_embed.proj")
    del shapes["cls_token"]
    for index in range(size.depth):
        block = f"{net}blocks.{index}"
        shapes |= _vectors(f"{block}.norm1", width) | _vectors(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", 4 * width, width) | _linear(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


def _ends(size: Size, token: str, positions: str, projection: str) -> Shapes:
    patch = size.patch_size
    return {
        token: (1, 1, size.width),
        positions: (1, size.num_positions, size.width),
        f"{projection}.weight": (size.width, size.in_chans, patch, patch),
        f"{projection}.bias": (size.width,),
    }


def _transformers_blocks(layers: str, depth: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for index in range(depth):
        layer = f"{layers}.{index}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.attention.{part}", width, width)
        shapes |= _linear(f"{layer}.attention.output.dense", width, width)
        shapes |= _linear(f"{layer}.intermediate.dense", 4 * width, width)
        shapes |= _linear(f"{layer}.output.dense", width, 4 * width)
        shapes |= _vectors(f"{layer}.layernorm_before", width) | _vectors(f"{layer}.layernorm_after", width)
    return shapes


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _vectors(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
