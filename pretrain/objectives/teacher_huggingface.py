"""Vision encoders as Hugging Face's transformers stores them, as arguments and weights of timm's VisionTransformer.

transformers itself is not needed: config.json says the shape, leaving out what equals the defaults of its kind, and
names map one to one but for queries, keys and values, which timm keeps in one matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from masking.mask import Grid
from pretrain.backbones.positions import resize_positions

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_BLOCK = {  # of every kind: patterns of names, in the order in which they are tried
    r"(?:encoder\.)?layers?\.(\d+)\.": r"blocks.\1.",
    r"self_attn\.|attention\.attention\.": "attn.",
    r"attention\.([qkv])_proj": r"attn.\1_proj",  # as version 5 names its modules
    r"attention\.output\.dense|attn\.out_proj|attention\.o_proj": "attn.proj",
    r"layer_norm1|layernorm_before": "norm1",
    r"layer_norm2|layernorm_after": "norm2",
    r"intermediate\.dense": "mlp.fc1",
    r"(blocks\.\d+)\.output\.dense": r"\1.mlp.fc2",
    r"layer_scale([12])\.lambda1": r"ls\1.gamma",
    r"attn\.query": "attn.q_proj",
    r"attn\.key": "attn.k_proj",
    r"attn\.value": "attn.v_proj",
}
_ENDS = {
    r"embeddings\.(?:class_embedding|cls_token)": "cls_token",
    r"embeddings\.(?:position_embedding\.weight|position_embeddings)": "pos_embed",
    r"embeddings\.(?:patch_embeddings\.projection|patch_embedding)": "patch_embed.proj",
    r"pre_layrnorm|pre_layernorm": "norm_pre",
    r"^(?:post_layernorm|layernorm)\.": "norm.",
}
_IGNORED = re.compile(r"position_ids|mask_token|pooler|classifier|visual_projection|text_|logit_scale")


@dataclass(frozen=True)
class _Kind:
    """What a config.json of one model_type leaves out, and how it is unlike the others."""

    prefix: str  # of the vision encoder's names
    defaults: Mapping[str, Any]
    pre_norm: bool
    scaled: bool  # has layer scale
    normal: tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, where no preprocessor_config.json says them


_COMMON = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
           "num_channels": 3, "hidden_act": "gelu"}  # fmt: skip
_AS_CLIP = {**_COMMON, "intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_AS_VIT = {**_COMMON, "intermediate_size": 3072, "patch_size": 16, "layer_norm_eps": 1e-12, "qkv_bias": True}
_AS_DINO2 = {**_COMMON, "mlp_ratio": 4, "patch_size": 14, "layer_norm_eps": 1e-6, "qkv_bias": True}
KINDS = {
    "clip": _Kind("vision_model.", _AS_CLIP, True, False, _CLIP),
    "clip_vision_model": _Kind("vision_model.", _AS_CLIP, True, False, _CLIP),
    "vit": _Kind("vit.", _AS_VIT, False, False, _HALF),
    "vit_mae": _Kind("vit.", _AS_VIT, False, False, _IMAGENET),
    "dinov2": _Kind("dinov2.", _AS_DINO2, False, True, _IMAGENET),
}


def as_timm(
    config: Mapping[str, Any], state: Mapping[str, Tensor], grid: Grid
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of timm's VisionTransformer for crops cut into grid, and its weights, from the config.json and the
    tensors of a model of one of KINDS. Raises ValueError or KeyError where they do not go together."""
    kind = KINDS[config["model_type"]]
    settings = {**kind.defaults, **(config.get("vision_config") or config)}
    if settings.get("use_swiglu_ffn"):
        raise ValueError("use_swiglu_ffn: its MLP is gated, and a plain ViT's is not")
    width, patch = settings["hidden_size"], settings["patch_size"]
    hidden = settings.get("intermediate_size") or width * settings["mlp_ratio"]
    shape = {
        "img_size": (grid.height * patch, grid.width * patch),
        "patch_size": patch,
        "in_chans": settings["num_channels"],
        "num_classes": 0,
        "embed_dim": width,
        "depth": settings["num_hidden_layers"],
        "num_heads": settings["num_attention_heads"],
        "mlp_ratio": hidden / width,
        "qkv_bias": settings.get("qkv_bias", True),
        "pre_norm": kind.pre_norm,
        "init_values": 1.0 if kind.scaled else None,
        "act_layer": settings["hidden_act"],
        "norm_layer": partial(nn.LayerNorm, eps=settings["layer_norm_eps"]),
    }
    return shape, _renamed(state, kind.prefix, own_grid(settings), grid)


def own_grid(settings: Mapping[str, Any]) -> Grid:
    """The patches of the images that a model with these settings was made for."""
    size, patch = settings["image_size"], settings["patch_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return Grid(height // patch, width // patch)


def normalisation(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of values in 0..1: what preprocessor_config.json says, else what
    models of this kind are trained with."""
    mean, std = KINDS[config["model_type"]].normal
    return list(preprocessor.get("image_mean", mean)), list(preprocessor.get("image_std", std))


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one transformer under timm's names, float32, queries, keys and values in one matrix."""
    parts = {own_name(name): tensor.float() for name, tensor in state.items()}
    out = {name: tensor for name, tensor in parts.items() if not re.search(r"attn\.[qkv]_proj", name)}
    for name in [name for name in parts if "attn.q_proj" in name]:
        rows = [parts[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
        out[name.replace("q_proj", "qkv")] = torch.cat(rows)
    return out


def own_name(name: str) -> str:
    """timm's name for one of transformers' names, less its prefix; attn.q_proj and so on for parts of attn.qkv."""
    for pattern, replacement in {**_BLOCK, **_ENDS}.items():
        name = re.sub(pattern, replacement, name)
    return name


def encoder_tensors(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The vision encoder's tensors of state, without prefix where names have it."""
    prefixed = any(name.startswith(prefix) for name in state)
    kept = {name: tensor for name, tensor in state.items() if not prefixed or name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if not _IGNORED.search(name)}


def _renamed(state: Mapping[str, Tensor], prefix: str, old: Grid, new: Grid) -> dict[str, Tensor]:
    out = own_names(encoder_tensors(state, prefix))
    out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    table = rearrange(out["pos_embed"].reshape(-1, out["cls_token"].shape[-1]), "n d -> 1 n d")
    if table.shape[1] != old.num_patches + 1:
        raise ValueError(f"{table.shape[1]} positions for a grid of {old.height}x{old.width} and a class token")
    out["pos_embed"] = table if old == new else resize_positions(table, old, new)
    return out
