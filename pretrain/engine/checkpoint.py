"""Saves a run's state so that it is whole or absent, and restores the newest that is whole.

Written into ckpt/.tmp-*, hashed, flushed; when all ranks say they did it, COMMIT.json is added, the attempt is asked
whether it still owns the run, and one rename publishes ckpt/STEP-aATTEMPT. A failure on any rank is a failure of all:
the old checkpoints stand, training goes on, and the save is tried again when the next one is due.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pretrain.engine import fsops
from pretrain.engine.agree import gather_json
from pretrain.engine.attempts import Attempts
from pretrain.engine.commit import COMMIT, BadCheckpoint, Commit, directory_name, verify
from pretrain.engine.engine import Engine
from pretrain.engine.settings import CheckpointConfig
from pretrain.engine.stored import rank_file
from pretrain.errors import CheckpointError, CrashLoopError, FencedError, SavedForLater

_NAME = re.compile(r"\d{10}-a\d{6}")
_MAX_FAILURES = 3
_MAX_IN_VAIN = 3  # attempts of one job in a row that published nothing
_HEADROOM = 1.2
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RunState:
    """What a run is, beside its weights: where it stands, and the constants that its samples depend on."""

    step: int
    fingerprint: str  # of the dataset
    seed: int
    batch_size: int
    lanes: int
    block: int
    wandb_id: str | None = None
    counters: dict[str, int] = field(default_factory=dict)


_CONSTANTS = {
    "fingerprint": "data.train (its fingerprint)", "seed": "seed", "batch_size": "data.batch_size",
    "lanes": "data.lanes", "block": "data.block",
}  # fmt: skip


class Checkpoints:
    """The checkpoints of one attempt at a run. Every method is collective."""

    def __init__(
        self, run_dir: Path, cfg: CheckpointConfig, engine: Engine, *, on_event: Callable[..., None] | None = None,
        job: str | None = None,
    ) -> None:  # fmt: skip
        """job: what the scheduler calls the job that starts this run, and may start it again by itself. Raises
        CrashLoopError where it did so in vain too often."""
        self.on_event = on_event  # on_event(kind, **fields), on rank 0: the journal
        self.before_save: Callable[[], None] | None = None  # on rank 0: puts on the disk what a checkpoint counts on
        self.last_step: int | None = None  # of the newest checkpoint that stands
        self._run_dir, self._dir, self._cfg, self._engine = run_dir, run_dir / "ckpt", cfg, engine
        self._attempts = Attempts(run_dir)
        self._failures = 0
        self._last_path: Path | None = None
        self.attempt: int = self._together(lambda: self._take_number(job) if self._is_main else 0)[0]
        if self.attempt == 0:
            raise CrashLoopError(
                f"job {job} has started {run_dir} {_MAX_IN_VAIN} times in a row without a new checkpoint, and this "
                f"start was not made; look at its log and at lacuna show {run_dir}, mend that, and submit it again"
            )

    def save(self, state: RunState) -> Path | None:
        """Publishes state; the directory, or None where it could not be written and an older one still stands."""
        final = self._dir / directory_name(state.step, self.attempt)
        temporary = self._dir / f".tmp-{final.name}"
        if self.last_step == state.step:
            return self._last_path
        try:
            self._together(lambda: self._begin(temporary, final))
            sums = self._together(lambda: asdict(self._engine.save_slices(temporary)))
            self._together(lambda: self._publish(state, temporary, final, sums) if self._is_main else None)
        except _FailedTogether as failure:
            self._give_up(state.step, temporary, failure)
            return None
        self._failures = 0
        self.last_step, self._last_path = state.step, final
        if self._is_main:
            self._tell("checkpoint", step=state.step, path=final.name)
            self._prune()
        return final

    def require_ours(self) -> None:
        """Raises FencedError, on all ranks alike, where a newer attempt owns the run: before its files are written."""
        self._together(lambda: self._attempts.require(self.attempt) if self._is_main else None)

    def restore(self, expected: RunState, *, allow_change: bool = False) -> RunState:
        """Loads the newest checkpoint that verifies on all ranks; expected itself for a run without history.

        expected is the state of this run at step 0: its constants must be those stored, unless allow_change.
        """
        names = self._together(lambda: self._tidy() if self._is_main else [])[0]
        for name in names:
            commit = self._verified(self._dir / name)
            if commit is None:
                continue
            state = _state_of(commit)
            if not allow_change:
                self._require_same_run(commit, state, expected)
            try:
                self._together(partial(self._engine.load_slices, self._dir / name))
            except _FailedTogether as failure:
                self._tell("checkpoint unreadable", path=name, reason=str(failure))
                continue
            self.last_step, self._last_path = state.step, self._dir / name
            return state
        self._require_no_history(names)
        return expected

    @property
    def _is_main(self) -> bool:
        return self._engine.rank == 0

    def _take_number(self, job: str | None) -> int:
        """A fresh attempt's, or 0 where the job goes round in circles."""
        if job is not None and self._attempts.without_progress(job) >= _MAX_IN_VAIN:
            return 0
        return self._attempts.open(self._engine.world, job)

    def _begin(self, temporary: Path, final: Path) -> None:
        """The lease is still ours, there is room for all, and nothing of an earlier try is in the way."""
        if not self._is_main:
            return
        self._attempts.require(self.attempt)
        if self.before_save is not None:
            self.before_save()
        for leftover in (temporary, final):
            if leftover.exists():
                self._discard(leftover)
        fsops.mkdir(temporary)
        needed = int(_HEADROOM * self._engine.state_bytes() * self._engine.world)
        free = fsops.free_bytes(temporary)
        if free < needed:
            raise OSError(f"{needed / 1e9:.2f} GB are needed in {self._dir} and {free / 1e9:.2f} GB are free")

    def _publish(self, state: RunState, temporary: Path, final: Path, sums: list[dict[str, Any]]) -> None:
        files = {rank_file(temporary, rank).name: fsops.FileSum(**entry) for rank, entry in enumerate(sums)}
        optim = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self._engine.optim).items()}
        commit = Commit(state.step, self.attempt, self._engine.layout_kind, asdict(state), optim, files)
        fsops.write(temporary / COMMIT, [commit.encode()])
        fsops.fsync_dir(temporary)
        self._attempts.require(self.attempt)
        fsops.rename(temporary, final)
        self._attempts.published(self.attempt, state.step)
        fsops.point_link(self._run_dir / "latest", f"ckpt/{final.name}")

    def _give_up(self, step: int, temporary: Path, failure: _FailedTogether) -> None:
        self._failures += 1
        if self._is_main:
            fsops.remove_tree(temporary)
            self._tell("checkpoint failed", step=step, reason=str(failure), in_a_row=self._failures)
        if self._failures >= _MAX_FAILURES:
            raise SavedForLater(
                f"{self._failures} checkpoints in a row could not be written, the last because: {failure}. That of "
                f"step {self.last_step} stands; make room or repair the storage, and run the same command again"
            ) from failure

    def _prune(self) -> None:
        """Keeps the newest and the milestones; the others lose their name first, so a kill leaves no half one."""
        keep, every = max(2, self._cfg.keep), self._cfg.milestone_every
        old = [name for name in self._names() if _NAME.fullmatch(name)][::-1][keep:]
        try:
            for name in old:
                if every is None or int(name[:10]) % every:
                    self._discard(self._dir / name)
        except OSError as error:
            self._tell("pruning failed", reason=str(error))

    def _discard(self, path: Path) -> None:
        trash = path.with_name(f".trash-{path.name.lstrip('.')}")
        fsops.remove_tree(trash)
        fsops.rename(path, trash)
        fsops.remove_tree(trash)

    def _names(self) -> list[str]:
        return fsops.names(self._dir)

    def _tidy(self) -> list[str]:
        """Removes what killed attempts left; names of the candidates, newest first."""
        names = self._names()
        for name in names:
            if name.startswith((".tmp-", ".trash-")):
                fsops.remove_tree(self._dir / name)
        return sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)

    def _verified(self, directory: Path) -> Commit | None:
        """The commit all ranks found and agree on; a directory that is bad for any of them is set aside by name."""
        verdict, commit = self._verdict(directory)
        verdicts = gather_json(verdict)
        if all(v["sum"] is not None and v["sum"] == verdicts[0]["sum"] for v in verdicts):
            return commit
        reasons = [f"rank {rank}: {v['reason']}" for rank, v in enumerate(verdicts) if v["reason"]]
        bad = any(v["bad"] for v in verdicts)
        if self._is_main:
            reason = "; ".join(reasons) or "the ranks read different ones"
            self._tell("checkpoint refused", path=directory.name, reason=reason)
        self._together(lambda: self._quarantine(directory) if bad and self._is_main else None)
        return None

    def _verdict(self, directory: Path) -> tuple[dict[str, Any], Commit | None]:
        mine = rank_file(directory, self._engine.rank).name
        try:
            commit = verify(directory, {mine})
            if commit.layout != self._engine.layout_kind:  # values of any file may become ours
                verify(directory)
        except BadCheckpoint as error:
            return {"sum": None, "bad": True, "reason": str(error)}, None
        except OSError as error:
            return {"sum": None, "bad": False, "reason": str(error)}, None
        return {"sum": commit.encode().decode(), "bad": False, "reason": None}, commit

    def _quarantine(self, directory: Path) -> None:
        aside = directory.with_name(f".bad-{directory.name}")
        while aside.exists():
            aside = aside.with_name(aside.name + "+")
        fsops.rename(directory, aside)

    def _require_same_run(self, commit: Commit, state: RunState, expected: RunState) -> None:
        for name, key in _CONSTANTS.items():
            stored, here = getattr(state, name), getattr(expected, name)
            if stored != here:
                raise CheckpointError(
                    f"{key} was {stored} in the checkpoint of step {state.step} and is {here} now: other samples would "
                    "follow; use the old value, another name=..., or --fresh"
                )
        for key in ("betas", "eps", "weight_decay", "clip_norm"):
            value = getattr(self._engine.optim, key)
            here = list(value) if isinstance(value, tuple) else value
            if commit.optim.get(key) != here:
                raise CheckpointError(
                    f"optim.{key} was {commit.optim.get(key)} in the checkpoint of step {state.step} and is {here} "
                    "now; use the old value, another name=..., or --allow-change"
                )

    def _require_no_history(self, names: list[str]) -> None:
        last = self._together(lambda: self._history(names) if self._is_main else None)[0]
        if last is not None:
            raise CheckpointError(
                f"{self._run_dir} has published checkpoints ({last}), and none of them verifies now; what is left is "
                f"in {self._dir}. Nothing was overwritten: bring one back, or start anew with --fresh"
            )

    def _history(self, names: list[str]) -> str | None:
        step = self._attempts.last_published()
        if step is not None:
            return f"the last of step {step}"
        found = names or [name for name in self._names() if name.startswith(".bad-")]
        return found[0] if found else None

    def _together(self, act: Callable[[], T]) -> list[T]:
        """act on every rank, and what each returned; where it failed on any, it has failed on all."""
        value, failure = None, None
        try:
            value = act()
        except FencedError as error:
            failure = {"fenced": True, "reason": str(error)}
        except OSError as error:
            failure = {"fenced": False, "reason": str(error)}
        answers = gather_json({"value": value, "failure": failure})
        for rank, answer in enumerate(answers):
            if answer["failure"] is not None and answer["failure"]["fenced"]:
                raise FencedError(answer["failure"]["reason"])
            if answer["failure"] is not None:
                raise _FailedTogether(f"rank {rank}: {answer['failure']['reason']}")
        return [answer["value"] for answer in answers]

    def _tell(self, kind: str, **facts: Any) -> None:
        if self._is_main:
            if kind != "checkpoint":
                _LOG.warning("%s: %s", kind, facts)
            if self.on_event is not None:
                self.on_event(kind, **facts)


class _FailedTogether(OSError):
    """Some rank could not do its part."""


def _state_of(commit: Commit) -> RunState:
    known = {entry.name for entry in fields(RunState)}
    return RunState(**{key: value for key, value in commit.run.items() if key in known})
