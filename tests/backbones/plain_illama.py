"""iLLaMA as its paper writes it, in as few words as torch allows: dense masks, real numbers, one image at a time."""

import torch
from torch.nn.functional import linear, silu, softmax


def plain_illama(state, images, heads, alpha, patch, ids=None, mode="paper", unmasked=()):
    """Sequence (B, 1 + L, D) after the last norm, class token in front, of normalised images (B, C, H, W) and patches
    ids (B, L), all where None; alpha a number, and 1 in blocks that are unmasked. state is the encoder's state
    dict, class token last."""
    width = state["cls_token"].shape[-1]
    tokens = torch.nn.functional.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch
    ).flatten(2).mT  # fmt: skip
    num_patches = tokens.shape[1]
    ids = torch.arange(num_patches).expand(len(images), -1) if ids is None else ids
    out = []
    for row, kept in zip(tokens, ids, strict=True):
        places = torch.cat([kept, torch.tensor([num_patches])])
        x = torch.cat([row[kept], state["cls_token"][0]]) + state["pos_embed"][0][places]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        for index in range(depth):
            own = {name[len(f"blocks.{index}.") :]: value for name, value in state.items()
                   if name.startswith(f"blocks.{index}.")}  # fmt: skip
            x = _block(x, own, places, heads, 1.0 if index in unmasked else alpha, mode)
        x = _norm(x, state["norm.weight"])
        out.append(torch.cat([x[-1:], x[:-1]]))
    assert out[0].shape[1] == width
    return torch.stack(out)


def turned(x, places):
    """x (H, L, E) turned by its places: channel 2i and 2i + 1 by place * 10000^(-2i / E)."""
    size = x.shape[-1]
    angles = places[:, None].double() * 10_000.0 ** (-torch.arange(0, size, 2).double() / size)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


def _block(x, own, places, heads, alpha, mode):
    length, width = x.shape
    qkv = linear(_norm(x, own["norm1.weight"]), own["attn.qkv.weight"], own["attn.qkv.bias"])
    q, k, v = (part.reshape(length, heads, -1).transpose(0, 1) for part in qkv.split(width, dim=1))
    scores = turned(q, places) @ turned(k, places).mT / (width // heads) ** 0.5
    lower = torch.ones(length, length, dtype=x.dtype).tril()
    if mode == "exact" and alpha != 1:
        weights = softmax(scores.masked_fill(lower == 0, -torch.inf), dim=-1)
    else:
        weights = softmax(scores, dim=-1) * (alpha + (1 - alpha) * lower)
    mixed = (weights @ v).transpose(0, 1).reshape(length, width)
    x = x + linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])
    y = _norm(x, own["norm2.weight"])
    gated = silu(linear(y, own["mlp.fc1.weight"])) * linear(y, own["mlp.fc3.weight"])
    return x + linear(gated, own["mlp.fc2.weight"])


def _norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
