"""MaskAlign's claim: alignment with a teacher is better than reconstruction; and what of it does that."""

from benchmarks.claims.arms import Arm, Claim

_ALIGN = "configs/maskalign_cifar.py"


def _aligned(*settings: str) -> Arm:
    """A student of the run of MAE that is the baseline."""
    return Arm(settings, config=_ALIGN, teacher="mae")


CLAIM = Claim(
    title="MaskAlign with a teacher trained by MAE",
    config="configs/mae_cifar.py",
    baseline="mae",
    arms={
        "mae": Arm(),
        "mae-2x": Arm(times=2),
        "attentive": _aligned(),
        "random": _aligned("mask=Uniform", "mask.ratio.hidden=0.7"),
        "no-dynamic-alignment": _aligned("objective.mixing=false"),
        "last-level": _aligned("objective.levels=last"),
        "ratio-0": _aligned("mask.ratio.hidden=0"),
    },
    small=("objective.decoder_width=32", "objective.decoder_depth=1"),
    remarks=(
        "`mae` is the baseline, and the teacher of every arm below `mae-2x`, each of its own seed; `mae-2x` is what "
        "the teacher's steps would buy without alignment. All scores are of frozen features: fine-tuning of "
        "teacher and student, by which the paper compares, is not measured here. The losses of `mae` and of alignment "
        "are of different kinds.",
    ),
)
