"""The autoencoder of published tokenizers: VQGAN (Esser et al., "Taming Transformers for High-Resolution Image
Synthesis"), MaskGIT's of it, and latent diffusion's (Rombach et al.), whose KL-16 MAR generates with.

They differ in what is there: attention, biases, a convolution that halves the sides or an average, layers around the
codes. The names and shapes in a file say which, so a module is built of these alone and has exactly their names.
Letters: B images, C channels, H and W sides."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS, _EPS = 32, 1e-6

Shapes = Mapping[str, torch.Size]  # of tensors, by their names


class Within:
    """The part of a file's names that begins with a prefix."""

    def __init__(self, shapes: Shapes, prefix: str = "") -> None:
        self._shapes, self._prefix = shapes, prefix

    def __truediv__(self, name: str) -> Within:
        return Within(self._shapes, f"{self._prefix}{name}.")

    def __bool__(self) -> bool:
        return any(name.startswith(self._prefix) for name in self._shapes)

    def each(self, name: str) -> list[Within]:
        """The numbered parts of that name, from 0 on."""
        found: list[Within] = []
        while part := self / f"{name}.{len(found)}":
            found.append(part)
        return found

    def conv(self, name: str, stride: int = 1) -> nn.Conv2d:
        """A convolution; with stride 2 its input is to be padded at the right and the bottom. Raises KeyError."""
        outputs, inputs, side, _ = self._shapes[f"{self._prefix}{name}.weight"]
        has_bias = f"{self._prefix}{name}.bias" in self._shapes
        return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2 if stride == 1 else 0, bias=has_bias)

    def norm(self, name: str) -> nn.GroupNorm:
        """A norm over groups of channels. Raises KeyError."""
        return nn.GroupNorm(_GROUPS, self._shapes[f"{self._prefix}{name}.weight"][0], eps=_EPS)


class PublishedEncoder(nn.Module):
    """Images (B, C, H, W) to latents (B, c, h, w)."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        self.conv_in = file.conv("conv_in")
        levels = file.each("down")
        self.down = nn.ModuleList([_Level(part, "downsample", last=part is levels[-1]) for part in levels])
        self.mid = _Middle(file / "mid")
        self.norm_out, self.conv_out = file.norm("norm_out"), file.conv("conv_out")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) to (B, c, h, w)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class PublishedDecoder(nn.Module):
    """Latents (B, c, h, w) to images (B, C, H, W)."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        self.conv_in, self.mid = file.conv("conv_in"), _Middle(file / "mid")
        self.up = nn.ModuleList([_Level(part, "upsample", last=i == 0) for i, part in enumerate(file.each("up"))])
        self.norm_out, self.conv_out = file.norm("norm_out"), file.conv("conv_out")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, h, w) to (B, C, H, W); the levels are numbered from the image's size down."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Level(nn.Module):
    """Residual blocks of one size, each with attention behind it or none, and the way to the next size."""

    def __init__(self, file: Within, way: str, *, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([_Block(part) for part in file.each("block")])
        self.attn = nn.ModuleList([_Attention(part) for part in file.each("attn")])
        self.downsample = _Halve(file / way) if way == "downsample" and not last else nn.Identity()
        self.upsample = _Double(file / way) if way == "upsample" and not last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if i < len(self.attn):
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class _Halve(nn.Module):
    """Half the sides: by a convolution, or by means of four where the file has none."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        self.conv = file.conv("conv", stride=2) if file else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class _Double(nn.Module):
    """Every pixel four times, then a convolution where the file has one."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        self.conv = file.conv("conv") if file else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Middle(nn.Module):
    """What is at the smallest size: blocks, with attention between them or none."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        for name, kind in (("block_1", _Block), ("attn_1", _Attention), ("block_2", _Block)):
            if file / name:
                self.add_module(name, kind(file / name))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class _Block(nn.Module):
    """Twice norm, SiLU and a convolution, added to what came in, or to what a shortcut makes of it."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        self.norm1, self.conv1 = file.norm("norm1"), file.conv("conv1")
        self.norm2, self.conv2 = file.norm("norm2"), file.conv("conv2")
        self.shortcut = file.conv("shortcut") if file / "shortcut" else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        if self.shortcut is None:
            return x + inner
        # MaskGIT's shortcut reads what the block has made: it is as wide at both ends.
        return self.shortcut(x if self.shortcut.in_channels == x.shape[1] else inner) + inner


class _Attention(nn.Module):
    """Every place looks at all others, with one head."""

    def __init__(self, file: Within) -> None:
        super().__init__()
        self.norm = file.norm("norm")
        self.q, self.k, self.v, self.proj_out = (file.conv(name) for name in ("q", "k", "v", "proj_out"))

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        q, k, v = (rearrange(part(normal), "b c h w -> b (h w) c") for part in (self.q, self.k, self.v))
        found = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(rearrange(found, "b (h w) c -> b c h w", h=x.shape[2]))
