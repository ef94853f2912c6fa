"""Hugging Face's vision encoders written plainly, under the names their files have: what ours is compared with."""

import json

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

WIDTH, HEADS, HIDDEN, DEPTH = 32, 4, 64, 3
NAMES = {  # q, k, v, output, norms, MLP of a layer; then the stem
    "clip": ("vision_model.encoder.layers.{}.", "self_attn.{}_proj", "self_attn.out_proj", "layer_norm1", "layer_norm2",
             "mlp.fc1", "mlp.fc2", ("q", "k", "v")),
    "vit": ("vit.encoder.layer.{}.", "attention.attention.{}", "attention.output.dense", "layernorm_before",
            "layernorm_after", "intermediate.dense", "output.dense", ("query", "key", "value")),
    "dinov2": ("encoder.layer.{}.", "attention.attention.{}", "attention.output.dense", "norm1", "norm2", "mlp.fc1",
               "mlp.fc2", ("query", "key", "value")),
}  # fmt: skip
STEMS = {
    "clip": ("vision_model.embeddings.", "class_embedding", "position_embedding.weight", "patch_embedding"),
    "vit": ("vit.embeddings.", "cls_token", "position_embeddings", "patch_embeddings.projection"),
    "dinov2": ("embeddings.", "cls_token", "position_embeddings", "patch_embeddings.projection"),
}
EPS = {"clip": 1e-5, "vit": 1e-12, "dinov2": 1e-6}
ENDS = {"clip": "vision_model.post_layernorm", "vit": "vit.layernorm", "dinov2": "layernorm"}


def weights(kind, patch, side):
    """Random tensors of a model of kind, for images of side pixels."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=rng) * 0.2

    layer, part, out, norm1, norm2, fc1, fc2, parts = NAMES[kind]
    stem, token, table, projection = STEMS[kind]
    num = (side // patch) ** 2 + 1
    state = {f"{stem}{token}": draw(WIDTH) if kind == "clip" else draw(1, 1, WIDTH)}
    state[f"{stem}{table}"] = draw(num, WIDTH) if kind == "clip" else draw(1, num, WIDTH)
    state[f"{stem}{projection}.weight"] = draw(WIDTH, 3, patch, patch)
    if kind == "clip":
        state |= {f"vision_model.pre_layrnorm.{end}": draw(WIDTH) for end in ("weight", "bias")}
        state |= {"text_model.embeddings.token_embedding.weight": draw(5, 8), "logit_scale": draw()}
    else:
        state[f"{stem}{projection}.bias"] = draw(WIDTH)
    if kind == "dinov2":
        state[f"{stem}mask_token"] = draw(1, WIDTH)
    for index in range(DEPTH):
        start = layer.format(index)
        linear = {part.format(p): (WIDTH, WIDTH) for p in parts} | {out: (WIDTH, WIDTH)}
        linear |= {fc1: (HIDDEN, WIDTH), fc2: (WIDTH, HIDDEN)}
        for name, shape in linear.items():
            state |= {f"{start}{name}.weight": draw(*shape), f"{start}{name}.bias": draw(shape[0])}
        for name in (norm1, norm2):
            state |= {f"{start}{name}.weight": draw(WIDTH) + 1, f"{start}{name}.bias": draw(WIDTH)}
        if kind == "dinov2":
            state |= {f"{start}layer_scale{n}.lambda1": draw(WIDTH) for n in (1, 2)}
    return state | {f"{ENDS[kind]}.{end}": draw(WIDTH) for end in ("weight", "bias")}


def folder(path, kind, state, patch, side):
    """state and its config.json in a folder, which leaves out what equals Hugging Face's defaults."""
    path.mkdir()
    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "patch_size": patch}
    shape |= {"image_size": side} | ({"mlp_ratio": 2} if kind == "dinov2" else {"intermediate_size": HIDDEN})
    config = {"model_type": kind} | ({"vision_config": shape} if kind == "clip" else shape)
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    save_file(state, path / "model.safetensors")
    return str(path)


def states(kind, state, pixels):
    """The residual stream after each layer for normalised pixels (B, 3, H, W), and the last attention's weights."""
    layer, part, out, norm1, norm2, fc1, fc2, parts = NAMES[kind]
    stem, token, table, projection = STEMS[kind]

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], EPS[kind])

    weight = state[f"{stem}{projection}.weight"]
    x = F.conv2d(pixels, weight, state.get(f"{stem}{projection}.bias"), stride=weight.shape[-1]).flatten(2).mT
    front = state[f"{stem}{token}"].reshape(1, 1, WIDTH).expand(len(x), 1, WIDTH)
    x = torch.cat([front, x], 1) + state[f"{stem}{table}"].reshape(1, -1, WIDTH)
    if kind == "clip":
        x = norm(x, "vision_model.pre_layrnorm")
    found = []
    for index in range(DEPTH):
        start = layer.format(index)
        scale = [state.get(f"{start}layer_scale{n}.lambda1", torch.ones(())) for n in (1, 2)]
        y = norm(x, f"{start}{norm1}")
        q, k, v = (linear(y, start + part.format(p)).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
        attention = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + scale[0] * linear((attention @ v).transpose(1, 2).flatten(2), start + out)
        y = linear(norm(x, f"{start}{norm2}"), start + fc1)
        y = y * torch.sigmoid(1.702 * y) if kind == "clip" else F.gelu(y)
        x = x + scale[1] * linear(y, start + fc2)
        found.append(x)
    return found, attention
