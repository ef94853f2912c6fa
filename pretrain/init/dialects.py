"""Whose names a file of weights has, and what we call the same tensors. One table a dialect, read in both directions:
`lacuna export` asks it, for every name that a library wants, which of our tensors belongs there.

Names of a whole model begin with "backbone." or "objective.", as in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from pretrain.errors import ConfigError

ENCODER, OBJECTIVE = "backbone.", "objective."


@dataclass(frozen=True)
class Dialect:
    """How somebody names a vision transformer."""

    name: str  # as it is said
    renames: tuple[tuple[str, str], ...] = ()  # patterns and what they become, in the order in which they are tried
    dropped: str = "$^"  # pattern of what has no place in encoder or decoder: it is left out, and said so

    def own_name(self, name: str) -> str:
        """Our name for one of theirs, in the whole model."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name if name.startswith(OBJECTIVE) else ENCODER + name

    def drops(self, name: str) -> bool:
        """Whether name is left out."""
        return re.match(self.dropped, name) is not None


_DECODER = (
    (r"^decoder_(embed|blocks|norm)\.", r"objective.decoder.\1."),
    (r"^decoder_pred\.", "objective.decoder.head."),
    (r"^mask_token$", "objective.decoder.mask_token"),
)
TIMM = Dialect("timm's names", dropped=r"head\.|head_dist\.|fc_norm\.|mask_token$")
MAE = Dialect("MAE's names, with its decoder", _DECODER, r"decoder_pos_embed$")
MASKALIGN = Dialect("MaskAlign's names", dropped=r"distill_(heads\.|weights$)|(clip|dino)_model\.|mask_token$")
ILLAMA = Dialect("iLLaMA's names", dropped=r"head\.")
DETECTRON2 = Dialect(
    "detectron2's names", ((r"^backbone\.net\.", ""),), r"backbone\.simfp|.*\.rel_pos_[hw]$|(?!backbone\.)"
)
MMLAB = Dialect(
    "OpenMMLab's names",
    (
        (r"^backbone\.", ""),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^ln1\.", "norm."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
    ),
    r".*\.relative_position_|(head|neck|decode_head|auxiliary_head|target_generator)\.",
)
MAGE = Dialect(
    "MAGE's names",
    (
        (r"^token_emb\.word_embeddings\.weight$", "token_embed.weight"),
        (r"^token_emb\.position_embeddings\.weight$", "pos_embed"),
        (r"^token_emb\.LayerNorm\.", "norm_pre."),
        (r"^decoder_pos_embed_learned$", "objective.decoder.pos_embed"),
        *_DECODER[:1],
        (r"^mlm_layer\.fc\.", "objective.head.dense."),
        (r"^mlm_layer\.ln\.", "objective.head.norm."),
        (r"^mlm_layer\.bias$", "objective.head.bias"),
    ),
    r"vqgan\.|(cls_token|pos_embed|mask_token|decoder_pos_embed|token_emb\.position_ids)$|(patch_embed|decoder_pred)\.",
)
_MAGE_CLASSES, _MAGE_SLOT = 1000, 76  # rows behind the codes, less the mask's; and that of them which is always given


def recognise(names: set[str], source: str) -> Dialect:
    """The dialect of a state dict with these names. Raises ConfigError for one that is none of those known."""
    marks = (
        ("token_emb.word_embeddings.weight", MAGE),
        ("blocks.0.mlp.fc3.weight", ILLAMA),
        ("backbone.net.patch_embed.proj.weight", DETECTRON2),
        ("patch_embed.projection.weight", MMLAB),
        ("backbone.patch_embed.projection.weight", MMLAB),
        ("distill_heads.0.weight", MASKALIGN),
        ("distill_heads.0.0.weight", MASKALIGN),
        ("distill_weights", MASKALIGN),
        ("decoder_blocks.0.attn.qkv.weight", MAE),
        ("blocks.0.attn.qkv.weight", TIMM),
    )
    for mark, dialect in marks:
        if mark in names:
            return dialect
    if any("embeddings.patch_embeddings." in name for name in names):
        raise ConfigError(f"{source} has Hugging Face's names; give the folder, whose config.json says what it is")
    known = ", ".join(dict.fromkeys(dialect.name.removesuffix(" names") for _, dialect in marks))
    raise ConfigError(
        f"{source} holds {', '.join(sorted(names)[:4])}, ...: no vision transformer under names of {known} or "
        "Hugging Face"
    )


def unwrapped(state: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors by name, whichever key they are kept under, without the prefixes that wrappers of torch add."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "module"):
        inner = state.get(key)
        if isinstance(inner, dict):
            return unwrapped(inner)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in tensors.items()}


def translated(state: Mapping[str, Tensor], dialect: Dialect) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """state under our names of a whole model, float32, and the names that are left out."""
    dropped = tuple(name for name in state if dialect.drops(name) or _is_idle(name, state[name], dialect))
    own = {dialect.own_name(name): tensor.float() for name, tensor in state.items() if name not in dropped}
    if dialect is MAGE:
        _cut_rows(own)
    pixels = [name for name in ("weight", "bias") if f"objective.decoder.head.{name}" in own]
    for name in pixels if dialect is MAE else ():
        key = f"objective.decoder.head.{name}"
        own[key] = channels_first(own[key], own["backbone.patch_embed.proj.weight"])
    return own, dropped


def _is_idle(name: str, tensor: Tensor, dialect: Dialect) -> bool:
    """Whether it is one of the factors that OpenMMLab's blocks must have, and changes nothing."""
    return dialect is MMLAB and name.endswith(("gamma_1", "gamma_2")) and bool((tensor == 1).all())


def channels_first(head: Tensor, projection: Tensor) -> Tensor:
    """Rows of a pixel head (P, ...) that are laid out "(row column channel)" as ours are, "(channel row column)".
    projection (D, C, p, p) says the sizes."""
    _, c, p, _ = projection.shape
    return rearrange(head, "(p q c) ... -> (c p q) ...", c=c, p=p).contiguous()


def channels_last(head: Tensor, projection: Tensor) -> Tensor:
    """The inverse of `channels_first`."""
    _, c, p, _ = projection.shape
    return rearrange(head, "(c p q) ... -> (p q c) ...", c=c, p=p).contiguous()


def _cut_rows(own: dict[str, Tensor]) -> None:
    """MAGE's rows are codes, a thousand classes, the mask; of the classes only one is ever given, and ours keeps it."""
    num_codes = len(own["backbone.token_embed.weight"]) - _MAGE_CLASSES - 1
    rows = torch.tensor([*range(num_codes), num_codes + _MAGE_SLOT, num_codes + _MAGE_CLASSES])
    own["backbone.token_embed.weight"] = own["backbone.token_embed.weight"][rows]
    own["backbone.pos_embed"] = own["backbone.pos_embed"][None]
    if "objective.head.bias" in own:
        own["objective.head.bias"] = own["objective.head.bias"].flatten()[rows]
