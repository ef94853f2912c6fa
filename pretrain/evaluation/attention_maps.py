"""The attention maps of an encoder's blocks, for a few images: training never makes them.

A map is what attention makes of the identity. A block's attention is run once more, as it stands, on values that are
columns of the identity: so masks, positions and gates are the block's own, and no rule is written down a second time.
Letters: B images, L tokens in the order of the encoder's own sequence, H heads, E channels of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError

Inputs = tuple[Any, ...]


def attention_map(attention: nn.Module, inputs: Inputs, *, blank: bool = False) -> Tensor:
    """Map (B, H, L, L) of one attention module for its positional inputs: row i says how much token i takes of each
    token, column j how much is taken of token j. After a soft mask rows sum to less than 1.

    blank takes queries and keys of zeros, and of one image: what the mask makes of uniform attention."""
    num_tokens, num_heads = inputs[0].shape[1], int(attention.num_heads)  # type: ignore[arg-type]
    identity = torch.eye(num_tokens, device=inputs[0].device)
    head_dim = inputs[0].shape[2] // num_heads
    parts = []
    for columns in identity.split(head_dim, dim=1):
        padded = nn.functional.pad(columns, (0, head_dim - columns.shape[1]))
        mixed = _mix(attention, inputs, repeat(padded, "l e -> l (h e)", h=num_heads), blank)
        parts.append(rearrange(mixed, "b l (h e) -> b h l e", h=num_heads)[..., : columns.shape[1]])
        if blank:
            parts[-1] = parts[-1][:1]
    return torch.cat(parts, dim=-1)


@contextmanager
def on_attention(backbone: Backbone, see: Callable[[int, nn.Module, Inputs], object]) -> Iterator[None]:
    """Within it, see(block, module, inputs) is called before each block's attention runs. Raises ConfigError for an
    encoder whose blocks have no attention that `attention_map` could ask."""
    with ExitStack() as hooks:
        for index, block in enumerate(backbone.blocks):
            attention = getattr(block, "attn", None)
            if not all(hasattr(attention, name) for name in ("qkv", "proj", "num_heads")):
                raise ConfigError(
                    f"block {index} of this encoder has no attn with qkv, proj and num_heads; maps of attention can be "
                    "taken of encoders that have, as ViT and iLLaMA do"
                )
            assert isinstance(attention, nn.Module)
            hooks.callback(attention.register_forward_pre_hook(_seen_by(see, index)).remove)
        yield


def _seen_by(see: Callable[[int, nn.Module, Inputs], object], index: int) -> Callable[[nn.Module, Inputs], None]:
    def hook(module: nn.Module, inputs: Inputs) -> None:  # what a hook returns would take the place of the inputs
        see(index, module, inputs)

    return hook


def _mix(attention: Any, inputs: Inputs, values: Tensor, blank: bool) -> Tensor:
    """What attention hands to its last projection, (B, L, H * E), where every image's values are values (L, H * E)."""
    mixed: list[Tensor] = []

    def replaced(_: nn.Module, __: Inputs, qkv: Tensor) -> Tensor:
        queries_keys = qkv[..., : -values.shape[1]]
        queries_keys = torch.zeros_like(queries_keys) if blank else queries_keys
        return torch.cat([queries_keys, values.to(qkv.dtype).expand(len(qkv), -1, -1)], dim=-1)

    with ExitStack() as hooks:
        hooks.callback(attention.qkv.register_forward_hook(replaced).remove)
        hooks.callback(attention.proj.register_forward_pre_hook(lambda _, given: mixed.append(given[0])).remove)
        attention.forward(*inputs)  # not called, for the hook that asks for the map would ask again
    return mixed[0]
