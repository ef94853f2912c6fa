"""iLLaMA's mask where somebody's weights begin a run: it is the run's own, and a change of it is said or refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pretrain.backbones.base import Backbone
from pretrain.backbones.illama import Illama
from pretrain.backbones.illama_mask import Layout
from pretrain.errors import ConfigError


def with_own_mask(
    state: Mapping[str, Tensor], backbone: Backbone, origin: str, *, free: bool
) -> tuple[dict[str, Tensor], str]:
    """state of an encoder with backbone's mask and alpha in place of its own, and what both are in words; as it is,
    and nothing, where either knows no mask.

    Raises ConfigError where the class token stands on the other side, and, unless free, where the masks differ."""
    if not isinstance(backbone, Illama) or not {"layout", "alpha"} <= state.keys():
        return dict(state), ""
    was, here = Layout.read(state["layout"].tolist()), backbone.config.layout
    if not here.fits(was):
        raise ConfigError(
            f"{origin} was trained with backbone.class_token={was.class_token}, and the token's place is learned: "
            f"backbone.class_token={here.class_token} would take its row of the positions for a patch's; set "
            f"backbone.class_token={was.class_token}"
        )
    if was != here and not free:
        raise ConfigError(
            f"{origin} was trained with {was}, and backbone is {here}; only a run that learns classes may begin with "
            "weights of another mask: set what they are of"
        )
    own = backbone.state_dict()
    before, now = f"{was}{_alpha(was, state['alpha'])}", f"{here}{_alpha(here, own['alpha'])}{_schedule(backbone)}"
    words = f"{now}, as it was" if before == now else f"{before} -> {now}"
    return {**state, "alpha": own["alpha"], "layout": own["layout"]}, words


def _alpha(layout: Layout, alpha: Tensor) -> str:
    return f" alpha={alpha.item():.3g}" if layout.mode == "paper" else ""


def _schedule(backbone: Illama) -> str:
    soft = backbone.config.soft_mask
    return "" if soft is None or soft.initial == soft.end else f" to {soft.end:.3g}, {soft.kind}"
