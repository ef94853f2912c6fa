"""ColorMAE's claim: the colour of the noise behind the mask matters, green the most."""

from benchmarks.claims.arms import Arm, Claim

CLAIM = Claim(
    title="The colour of the mask's noise",
    config="configs/colormae_cifar.py",
    baseline="uniform",
    arms={
        "uniform": Arm(("mask=Uniform",)),
        "white": Arm(("mask.color=white",)),
        "blue": Arm(("mask.color=blue",)),
        "green": Arm(("mask.color=green",)),
        "green-1-pass": Arm(("mask.passes=1",)),
        "purple": Arm(("mask.color=purple",)),
        "red": Arm(("mask.color=red",)),
    },
    small=("objective.decoder_width=32", "objective.decoder_depth=1"),
)
