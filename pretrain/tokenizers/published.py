"""Tokenizers that others published, from a file on this machine: VQGAN and MaskGIT's of it, with codes, and latent
diffusion's autoencoders, with values. Files have the names of taming-transformers and latent-diffusion, or diffusers'.

The file says how the network is built (see published_layers). It does not say whether pixels go in as -1..1 or 0..1."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.tokenizers.base import Kind, Tokenizer
from pretrain.tokenizers.kl import KL, KLConfig
from pretrain.tokenizers.published_layers import PublishedDecoder, PublishedEncoder, Within
from pretrain.tokenizers.vq import code_distances
from pretrain.weights_file import read_state

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PixelRange = Literal["-1..1", "0..1"]
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "first_stage_model.", "vae.")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
_DIFFUSERS = tuple((re.compile(pattern), new) for pattern, new in (
    (r"\.down_blocks\.(\d+)\.", r".down.\1."), (r"\.up_blocks\.(\d+)\.", r".up.\1."), (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."), (r"\.(down|up)samplers\.0\.", r".\1sample."), (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.block\.0\.", ".mid.block_1."), (r"\.mid_block\.block\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attn\.0\.", ".mid.attn_1."), (r"\.group_norm\.", ".norm."), (r"\.to_out\.0\.", ".proj_out."),
    (r"\.to_([qkv])\.", r".\1."), (r"\.(nin|conv)_shortcut\.", ".shortcut."),
))  # fmt: skip


class PublishedTokenizer(Tokenizer):
    """The network of a file, with codes where it has a codebook."""

    def __init__(self, state: dict[str, Tensor], pixels: PixelRange | None) -> None:
        """state: names as `_own_names` gives them. Raises KeyError, or RuntimeError, for a file that is no such one."""
        super().__init__()
        file = Within({name: tensor.shape for name, tensor in state.items()})
        self.encoder, self.decoder = PublishedEncoder(file / "encoder"), PublishedDecoder(file / "decoder")
        self.quant_conv = file.conv("quant_conv") if file / "quant_conv" else nn.Identity()
        self.post_quant_conv = file.conv("post_quant_conv") if file / "post_quant_conv" else nn.Identity()
        codes = state.get("quantize.embedding.weight")
        self.quantize = nn.ModuleDict({} if codes is None else {"embedding": nn.Embedding(*codes.shape)})
        self.patch_size, self.in_chans = 2 ** (len(self.encoder.down) - 1), self.encoder.conv_in.in_channels
        last = self.encoder.conv_out if isinstance(self.quant_conv, nn.Identity) else self.quant_conv
        self.num_codes = None if codes is None else len(codes)
        self.num_values = last.out_channels // 2 if codes is None else codes.shape[1]
        self.pixels = pixels or ("-1..1" if file / "encoder" / "down.0" / "downsample" else "0..1")
        self._kl = KL(KLConfig(channels=self.num_values, weight=0.0))
        self.load_state_dict(state, assign=True)

    @property
    def kind(self) -> Kind:
        """What generation needs to know of it."""
        return Kind(self.patch_size, self.num_codes, self.num_values, self.in_chans, self.num_codes is None)

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) uint8 as the ids (B, N) of the nearest codes, or as values (B, N, num_values) drawn by
        noise (B, N * num_values) uniform in 0..1, or their means."""
        if self.num_codes is None:
            return self.draw(self.moments(images), noise)
        return code_distances(self._latents(images), self._codes.weight).argmin(-1)

    def moments(self, images: Tensor) -> Tensor:
        """Means and logarithms of variances of the tokens of images (B, C, H, W) uint8: (B, N, 2 * num_values)."""
        return self._latents(images)

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, N, num_values) float32 of `moments`."""
        return self._kl(moments, noise).values

    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Ids (B, N) or values (B, N, num_values) as images (B, C, H, W) float32 in 0..1."""
        values = tokens if self.num_codes is None else self._codes(tokens)
        latents = rearrange(values, "b (h w) c -> b c h w", h=grid.height).contiguous()
        pixels = self.decoder(self.post_quant_conv(latents))
        return (pixels if self.pixels == "0..1" else (pixels + 1) / 2).clamp(0, 1)

    @property
    def _codes(self) -> nn.Embedding:
        return cast(nn.Embedding, self.quantize["embedding"])

    def _latents(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        found = self.quant_conv(self.encoder(pixels if self.pixels == "0..1" else 2 * pixels - 1))
        return rearrange(found, "b c h w -> b (h w) c")


@cache
def published_tokenizer(path: str, pixels: PixelRange | None) -> PublishedTokenizer:
    """The tokenizer in the file at path, read once. Raises ConfigError."""
    state = _own_names(read_state(Path(path)))
    try:
        with torch.device("meta"):  # the file's tensors become the weights: none are drawn before
            return PublishedTokenizer(state, pixels)
    except KeyError as error:
        raise ConfigError(
            f"backbone.tokenizer.path={path} has no tensor {str(error.args[0])!r}, among {len(state)} of an encoder, a "
            "decoder and their codes; weights are read under the names of taming-transformers, latent-diffusion and "
            "diffusers, with whole encoder and decoder"
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"backbone.tokenizer.path={path} is not the network that its names say: {reason}") from error


def _own_names(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the autoencoder alone, float32, under latent-diffusion's names, a shortcut being a shortcut."""
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name.startswith(_PARTS) and isinstance(tensor, Tensor):
            found[name] = tensor.float()
    levels = {match[1] for name in found if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))}
    return {_own_name(name, len(levels)): _as_conv(name, tensor) for name, tensor in found.items()}


def _own_name(name: str, levels: int) -> str:
    for pattern, new in _DIFFUSERS:
        name = pattern.sub(new, name)
    if levels:  # diffusers numbers the decoder's levels from the smallest size up
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", name)
    return name


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    """Of attention diffusers keeps matrices, latent diffusion convolutions of one pixel."""
    return tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
