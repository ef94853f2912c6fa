"""From runs to what is published: numbers by arm, the verdict of the claim, and what early heterogeneity goes with."""

from __future__ import annotations

from typing import Any

from benchmarks.claims.arms import Claim
from benchmarks.claims.statistics_of_seeds import Interval, interval, rauc, spearman, steps_to, verdict

Runs = dict[str, dict[int, dict[str, Any]]]


def result_of(claim: Claim, runs: Runs, common_steps: int) -> dict[str, Any]:
    """Arms, and where there is such a thing the claim's verdict and the correlation with heterogeneity."""
    result: dict[str, Any] = {"untrained": _untrained(runs[claim.baseline]), "arms": summary(claim, runs)}
    if claim.rivals is not None and _differences(runs, claim.rivals.method, claim.rivals.rival, "knn"):
        result["claim"] = {key: _verdict(claim, runs, key) for key in ("knn", "linear")}
    if claim.heterogeneity:
        groups = {
            "all runs": list(runs),
            "runs of the common number of steps": [
                arm for arm in runs if claim.steps(arm, common_steps) == common_steps
            ],
        }
        result["heterogeneity and kNN"] = {words: _correlation(runs, arms) for words, arms in groups.items()}
    return result


def summary(claim: Claim, runs: Runs) -> dict[str, Any]:
    """By arm: its runs, their means, and over the seeds it shares with the baseline the differences (of losses, where
    the config is the same), RAUC and the steps to the baseline's last kNN (of the seeds that reach it), or
    None where that is not above the untrained encoder's."""
    base, rows = runs[claim.baseline], {}
    for arm, by_seed in runs.items():
        if not by_seed:
            continue
        keys, found = scores(claim), list(by_seed.values())
        row: dict[str, Any] = {"runs": by_seed, "mean": {key: interval([run[key] for run in found]) for key in keys}}
        shared = [seed for seed in by_seed if seed in base]
        if arm != claim.baseline and shared:
            comparable = [key for key in keys if key != "loss" or claim.arms[arm].config is None]
            row["difference"] = {key: interval(_differences(runs, arm, claim.baseline, key)) for key in comparable}
            row["verdict"] = {key: verdict(row["difference"][key]) for key in ("knn", "linear")}
            areas = [rauc(by_seed[seed]["curve"], base[seed]["curve"]) for seed in shared]
            row["rauc"] = interval(areas) if None not in areas else None
            targets = {seed: base[seed]["curve"][-1][1] for seed in shared}
            has_risen = all(targets[seed] > base[seed]["curve"][0][1] for seed in shared)
            reached = [steps_to(by_seed[seed]["curve"], targets[seed]) for seed in shared]
            row["steps_to_target"] = reached if has_risen else None
        rows[arm] = row
    return rows


def scores(claim: Claim) -> list[str]:
    """What a run of the claim is judged by."""
    teacher = ["with_teacher_s"] if any(arm.teacher for arm in claim.arms.values()) else []
    return ["loss", "knn", "linear", "train_s", *teacher, *(["heterogeneity"] if claim.heterogeneity else [])]


def _untrained(by_seed: dict[int, dict[str, Any]]) -> dict[str, Interval]:
    """What the encoder scores before its first step."""
    return {"knn": interval([run["curve"][0][1] for run in by_seed.values()])}


def _differences(runs: Runs, arm: str, less: str, key: str) -> list[float]:
    """Seed by seed, of the seeds that both have."""
    mine, others = runs.get(arm, {}), runs.get(less, {})
    return [mine[seed][key] - others[seed][key] for seed in mine if seed in others]


def _verdict(claim: Claim, runs: Runs, key: str) -> dict[str, Any]:
    """Whether the method is not below its rival by more than the interval, and whether the baseline would pass too."""
    assert claim.rivals is not None
    method, rival = claim.rivals.method, claim.rivals.rival
    difference = interval(_differences(runs, method, rival, key))
    doubling = interval(_differences(runs, claim.baseline, rival, key))
    return {
        f"{method} less {rival}": difference,
        f"{claim.baseline} less {rival}": doubling,
        "words": _words(difference, doubling, claim),
    }


def _words(difference: Interval, doubling: Interval, claim: Claim) -> str:
    assert claim.rivals is not None
    method, rival = claim.rivals.method, claim.rivals.rival
    if difference["plus_minus"] is None:
        return verdict(difference)
    if verdict(difference) == "lower":
        return f"not met: {method} is below {rival}"
    met = f"{method} is not below {rival} less the interval"
    if verdict(doubling) == "lower":
        return f"met: {met}, and {claim.baseline} is"
    return f"cannot be told: {met}, but neither is {claim.baseline}; more steps alone show no effect at this budget"


def _correlation(runs: Runs, arms: list[str]) -> dict[str, Any]:
    pairs = [(run["heterogeneity"], run["knn"]) for arm in arms for run in runs[arm].values()]
    return {"runs": len(pairs), "spearman": spearman(pairs) if len(pairs) > 2 else None}
