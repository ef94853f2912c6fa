"""What a run is, beside its weights: where it stands, and the constants that its samples depend on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from pretrain.engine.commit import Commit


@dataclass(frozen=True)
class RunState:
    """Stored in every checkpoint; two runs with the same constants meet the same samples."""

    step: int
    fingerprint: str  # of the dataset
    seed: int
    batch_size: int
    lanes: int
    block: int
    wandb_id: str | None = None
    counters: dict[str, int] = field(default_factory=dict)


# What a run may not change, and what a user calls it.
CONSTANTS = {
    "fingerprint": "data.train (its fingerprint)", "seed": "seed", "batch_size": "data.batch_size",
    "lanes": "data.lanes", "block": "data.block",
}  # fmt: skip


def state_of(commit: Commit) -> RunState:
    """The state that commit holds."""
    known = {entry.name for entry in fields(RunState)}
    return RunState(**{key: value for key, value in commit.run.items() if key in known})
