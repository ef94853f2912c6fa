"""Our tensors under somebody's names: for each name that a reader wants, the dialect says which of ours it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.export.report import ExportError


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of module, float32 on the host, as a file wants it."""
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in module.state_dict().items()}


def renamed(
    own: dict[str, Tensor], wanted: Iterable[str], own_name: Callable[[str], str], left_out: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Each of the wanted names with the tensor that own_name finds for it in own; attn.q_proj and so on are thirds of
    attn.qkv. Raises ExportError for a tensor of ours that is in nobody's place and not among left_out."""
    found, used = {}, set(left_out)
    for name in wanted:
        ours = own_name(name)
        for index, part in enumerate(("q_proj", "k_proj", "v_proj")):
            if f"attn.{part}" in ours:
                whole = ours.replace(part, "qkv")
                used.add(whole)
                found[name] = own[whole].chunk(3)[index].contiguous()
        if name not in found:
            if ours not in own:
                raise ExportError(f"the encoder has no {ours}, which belongs in {name}; nothing was written")
            used.add(ours)
            found[name] = own[ours]
    unused = sorted(set(own) - used)
    if unused:
        raise ExportError(f"{', '.join(unused[:5])} of the encoder would be left out; nothing was written")
    return found


def require_vit(config: Config, to: str) -> ViTConfig:
    """The encoder's settings; raises ConfigError for one that is no ViT."""
    if not isinstance(config.backbone, ViTConfig):
        name = type(config.backbone).__name__.removesuffix("Config")
        raise ConfigError(
            f"--to {to}: run {config.name} trained {name}, and {to} has no such architecture; only ViT can be exported "
            "to it. --to plain writes any encoder, with a loader"
        )
    return config.backbone


def require_plain(config: Config, to: str, *, scaled: bool = False) -> ViTConfig:
    """The same, for readers whose vision transformer has a class token and nothing else that is special; scaled: but
    layer scale."""
    vit = require_vit(config, to)
    special = [
        (not vit.class_token, "backbone.class_token=false"),
        (vit.registers > 0, f"backbone.registers={vit.registers}"),
        (vit.layer_scale is not None and not scaled, f"backbone.layer_scale={vit.layer_scale}"),
    ]
    for is_special, setting in special:
        if is_special:
            raise ConfigError(
                f"--to {to}: run {config.name} has {setting}, and the vision transformer there knows no such thing; "
                "--to timm does"
            )
    return vit
