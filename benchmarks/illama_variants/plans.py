"""What is trained: a config of the product each, and what all of them set alike."""

from __future__ import annotations

from dataclasses import dataclass

SAME = (
    "epochs=none", "data.batch_size=64", "data.workers=0", "backbone.width=64", "backbone.depth=4", "backbone.heads=2",
    "optim.base_lr=8e-3", "optim.warmup=0.1", "optim.final_lr_ratio=0.01", "engine.ema_decay=none",
    "tracking.panels_every=none", "tracking.wandb=off",
)  # fmt: skip
_CUTOFF = ("backbone.soft_mask.kind=constant", "backbone.soft_mask.cutoff=0.5")


@dataclass(frozen=True)
class Variant:
    """One run."""

    title: str
    config: str  # below the repository's root
    steps: int
    settings: tuple[str, ...] = _CUTOFF
    methods: str = "knn,linear"


def _supervised(title: str, steps: int, *settings: str, config: str = "illama") -> Variant:
    return Variant(title, f"configs/{config}_cifar_supervised.py", steps, settings, "knn,linear,head")


VARIANTS = {
    "supervised": _supervised("supervised", 500, *_CUTOFF),
    "supervised_longer": _supervised(
        "supervised, eight times as long", 4000,
        *_CUTOFF, "data.crop_scale=0.7,1", "objective.label_smoothing=0", "checkpoint.milestone_every=2000",
    ),
    "vit": _supervised("supervised ViT, no mask", 500, config="vit"),
    "A": Variant("A: mask tokens in place", "configs/illama_cifar_simmim.py", 400),
    "B": Variant("B: MAE, visible patches alone", "configs/illama_cifar_mae.py", 800,
                 (*_CUTOFF, "objective.decoder_width=64", "objective.decoder_depth=1", "objective.decoder_heads=2")),
    "D": Variant("D: questions behind the patches", "configs/illama_cifar_queries.py", 400),
    "E": Variant("E: next patch, with a prefix", "configs/illama_cifar_next.py", 300, ()),
}  # fmt: skip
