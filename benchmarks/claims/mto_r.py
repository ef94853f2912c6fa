"""MTO-R's claim: with half the steps SimMIM's features; and what of it does that (docs/mto-r.md)."""

from benchmarks.claims.arms import Arm, Claim, Rivals

_NO_LOSSES = ("mto.lambda_spa=0", "mto.lambda_e=0", "mto.lambda_r=0")

CLAIM = Claim(
    title="MTO-R on SimMIM",
    config="configs/simmim_cifar.py",
    baseline="simmim",
    arms={
        "simmim": Arm(),
        "simmim-2x": Arm(times=2),
        "mto-r": Arm(("mto.rho0=1",)),
        "exclusion-only": Arm(("mto.rho0=1", *_NO_LOSSES)),
        "losses-only": Arm(("mto.exclude=none",)),
        "random-exclusion": Arm(("mto.exclude=random",)),
        "frozen-token": Arm(("mto.exclude=none", *_NO_LOSSES, "mto.frozen_token=1")),
        "hard-block": Arm(("mto.exclude=all",)),
        "simmim-same-time": Arm(times=1.25),
    },
    loss="loss_pixel",
    rivals=Rivals("mto-r", "simmim-2x"),
    heterogeneity=True,
    remarks=(
        "MTO-R is a reconstruction from an abstract (docs/mto-r.md), not the published method. The loss is that of the "
        "pixels alone.",
        "Controls: `exclusion-only` and `losses-only` are its two parts; `random-exclusion` keeps out as many keys, "
        "drawn by chance, and `hard-block` all hidden keys in every block, both with the losses; `frozen-token` is "
        "SimMIM with a mask token that is drawn far away and not trained; `simmim-same-time` has the steps that "
        "MTO-R's extra time would buy.",
    ),
)
