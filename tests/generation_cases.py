"""Small token models with fresh, restless weights, for the tests of generation."""

from __future__ import annotations

import torch

from masking.mask import Grid
from pretrain.objectives.diffusion import DiffusionConfig
from pretrain.objectives.mage import MAGEConfig
from pretrain.objectives.mar import MARConfig
from pretrain.objectives.maskgit import MaskGITConfig
from pretrain.objectives.token_model import Canvas, Memory
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig

GRID = Grid(6, 6)
PALETTE, PIXELS = TokenizerConfig("palette", patch_size=4), TokenizerConfig("pixels", patch_size=4)
FAMILIES = ("maskgit", "mage", "mar")


def encoder_config(family, *, depth=4, classes=None, class_drop=0.0, **more):
    """A narrow encoder for family's tokens."""
    tokenizer, num_prefix = (PIXELS, 5) if family == "mar" else (PALETTE, 1)
    return TokenViTConfig(
        tokenizer, size="tiny", num_prefix=num_prefix, classes=classes, class_drop=class_drop, dropout=0.0, width=48,
        depth=depth, heads=4, **more,
    )  # fmt: skip


def objective_config(family, *, depth=4):
    """family's objective with a decoder of so many blocks, where it has one."""
    if family == "maskgit":
        return MaskGITConfig()
    if family == "mage":
        return MAGEConfig(decoder_depth=depth, decoder_heads=4)
    return MARConfig(decoder_depth=depth, head=DiffusionConfig(width=32, depth=2))


def build(family, *, depth=4, seed=0, grid=GRID, **more):
    """(backbone, objective) in eval mode, with weights large enough for attention to matter."""
    torch.manual_seed(seed)
    backbone = encoder_config(family, depth=depth, **more).build(grid, 3, (0.5,) * 3, (0.25,) * 3)
    objective = objective_config(family, depth=depth).build(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *objective.parameters()):
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.06))
    return backbone.eval().requires_grad_(False), objective.eval().requires_grad_(False)


def tokens_for(backbone, batch, seed=1):
    """Tokens of every position at random."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, backbone.grid.num_patches)
    if backbone.num_codes is None:
        return torch.randn(*shape, backbone.num_values, generator=rng)
    return torch.randint(0, backbone.num_codes, shape, generator=rng)


def canvas_for(backbone, known, seed=1, labels=None):
    """A canvas whose positions known (B, N) bool hold tokens."""
    tokens = tokens_for(backbone, len(known), seed)
    prefix = backbone.prefix_ids(labels, len(known), known.device)
    if backbone.num_codes is None:
        return Canvas(torch.where(known[..., None], tokens, 0.0), known.clone(), prefix)
    return Canvas(torch.where(known, tokens, backbone.mask_id), known.clone(), prefix)


def group_on(backbone, num_known=10, num_targets=8, batch=3, seed=2, labels=None):
    """A canvas with so many known positions, other for each image, and targets (B, n) among the rest."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, backbone.grid.num_patches, generator=rng).argsort(1)
    known = torch.zeros(order.shape, dtype=torch.bool).scatter(1, order[:, :num_known], True)
    return canvas_for(backbone, known, labels=labels), order[:, num_known : num_known + num_targets]


def fill(canvas, positions, tokens):
    """canvas with the rows positions (B, a) of tokens, a new one."""
    at = positions if tokens.ndim == 2 else positions[..., None].expand(-1, -1, tokens.shape[2])
    return Canvas(
        canvas.tokens.scatter(1, at, tokens.gather(1, at)), canvas.known.scatter(1, positions, True), canvas.prefix
    )


def rows(said, positions):
    """Rows positions (B, n) of said (B, N, D)."""
    return said.gather(1, positions[..., None].expand(-1, -1, said.shape[2]))


def remembered(backbone, objective, canvas, num_targets):
    """A full pass: what it says, and its memory."""
    memory = Memory()
    return objective.look(backbone, canvas, memory, num_targets), memory


def difference(one, other):
    """Largest difference, as a share of the largest number."""
    return float((one - other).abs().max() / other.abs().max())
