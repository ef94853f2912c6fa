"""Small states such as published tokenizers have: names of latent-diffusion, or diffusers', weights from a seed."""

from __future__ import annotations

import re

import torch
from torch import Tensor

WIDTHS = (32, 32, 64)  # two halvings
BLOCKS = 2


def latent_diffusion(values: int = 4, codes: int | None = None, code_dim: int = 8) -> dict[str, Tensor]:
    """An autoencoder with attention at the smallest size and in the middle: KL's, or with codes VQGAN's."""
    state: dict[str, Tensor] = {}
    outputs = 2 * values if codes is None else values
    _side(state, "encoder", 3, outputs, "downsample", attention=True)
    _side(state, "decoder", values, 3, "upsample", attention=True)
    if codes is None:
        _conv(state, "quant_conv", outputs, outputs, 1)
        _conv(state, "post_quant_conv", values, values, 1)
    else:
        _conv(state, "quant_conv", values, code_dim, 1)
        _conv(state, "post_quant_conv", code_dim, values, 1)
        state["quantize.embedding.weight"] = torch.empty(codes, code_dim)
    return _filled(state)


def maskgit(codes: int = 50) -> dict[str, Tensor]:
    """MaskGIT's: no attention, no biases but of the outermost and the doubling, halved by means, late shortcuts."""
    state: dict[str, Tensor] = {}
    _side(state, "encoder", 3, 16, None, attention=False)
    _side(state, "decoder", 16, 3, "upsample", attention=False)
    for name in [name for name in state if re.search(r"(conv1|conv2|encoder\.conv_in|shortcut)\.bias", name)]:
        del state[name]
    for name in [n for n in state if n.endswith("nin_shortcut.weight")]:
        outputs = state[name].shape[0]
        state[name] = torch.empty(outputs, outputs, 1, 1)
    state["quantize.embedding.weight"] = torch.empty(codes, 16)
    return _filled(state)


def as_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of diffusers."""
    found = {}
    for name, tensor in state.items():
        new = re.sub(r"^encoder\.down\.", "encoder.down_blocks.", name)
        new = re.sub(r"^decoder\.up\.(\d)\.", lambda m: f"decoder.up_blocks.{len(WIDTHS) - 1 - int(m[1])}.", new)
        new = new.replace(".block.", ".resnets.").replace("nin_shortcut", "conv_shortcut")
        new = new.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
        new = new.replace(".mid.block_1.", ".mid_block.resnets.0.").replace(".mid.block_2.", ".mid_block.resnets.1.")
        new = new.replace(".mid.attn_1.", ".mid_block.attentions.0.").replace(".attn.", ".attentions.")
        new = new.replace(".norm_out.", ".conv_norm_out.")
        if ".attentions." in new:
            new = re.sub(r"\.([qkv])\.", r".to_\1.", new)
            new = new.replace(".proj_out.", ".to_out.0.").replace(".norm.", ".group_norm.")
            tensor = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor
        found[new] = tensor
    return found


def _side(state: dict[str, Tensor], side: str, inputs: int, outputs: int, way: str | None, *, attention: bool) -> None:
    is_encoder = side == "encoder"
    first, last = (WIDTHS[0], WIDTHS[-1]) if is_encoder else (WIDTHS[-1], WIDTHS[0])
    _conv(state, f"{side}.conv_in", inputs, first)
    levels = list(enumerate(WIDTHS)) if is_encoder else list(enumerate(WIDTHS))[::-1]
    width = first
    for i, wanted in levels:
        level = f"{side}.{'down' if is_encoder else 'up'}.{i}"
        for j in range(BLOCKS if is_encoder else BLOCKS + 1):
            _block(state, f"{level}.block.{j}", width, wanted)
            width = wanted
            if attention and i == len(WIDTHS) - 1:
                _attention(state, f"{level}.attn.{j}", width)
        if way and i != (len(WIDTHS) - 1 if is_encoder else 0):
            _conv(state, f"{level}.{way}.conv", width, width)
    for name in ("block_1", "block_2"):
        _block(state, f"{side}.mid.{name}", WIDTHS[-1], WIDTHS[-1])
    if attention:
        _attention(state, f"{side}.mid.attn_1", WIDTHS[-1])
    _norm(state, f"{side}.norm_out", last)
    _conv(state, f"{side}.conv_out", last, outputs)


def _block(state: dict[str, Tensor], name: str, inputs: int, outputs: int) -> None:
    _norm(state, f"{name}.norm1", inputs)
    _conv(state, f"{name}.conv1", inputs, outputs)
    _norm(state, f"{name}.norm2", outputs)
    _conv(state, f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        _conv(state, f"{name}.nin_shortcut", inputs, outputs, 1)


def _attention(state: dict[str, Tensor], name: str, width: int) -> None:
    _norm(state, f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        _conv(state, f"{name}.{part}", width, width, 1)


def _conv(state: dict[str, Tensor], name: str, inputs: int, outputs: int, side: int = 3) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.empty(outputs, inputs, side, side), torch.empty(outputs)


def _norm(state: dict[str, Tensor], name: str, width: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.empty(width), torch.empty(width)


def _filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of unit gain, about, in the order of names."""
    random = torch.Generator().manual_seed(0)
    found = {}
    for name, empty in sorted(state.items()):
        inputs = empty[0].numel() if empty.ndim > 1 else 100
        found[name] = torch.randn(empty.shape, generator=random) * (1 if "embedding" in name else inputs**-0.5)
        if "norm" in name and name.endswith("weight"):
            found[name] += 1
    return found
