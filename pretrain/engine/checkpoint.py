"""Saves a run's state so that it is whole or absent; pretrain/engine/restore.py brings back the newest that is whole.

Written into ckpt/.tmp-*, hashed, flushed; when all ranks say they did it, COMMIT.json is added, the attempt is asked
whether it still owns the run, and one rename publishes ckpt/STEP-aATTEMPT. A failure on any rank is a failure of all:
the old checkpoints stand, training goes on, and the save is tried again when the next one is due.

`save` does all of it at once. `start` copies the state and lets a thread write the copy while training goes on; the
ranks see at a step boundary that all have written, and `finish` then does the rest. Nothing collective happens beside
the training loop, so neither can wait for the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.engine import fsops
from pretrain.engine.agree import FailedTogether, gather_json, together
from pretrain.engine.attempts import Attempts
from pretrain.engine.background import Background
from pretrain.engine.commit import COMMIT, Commit, directory_name
from pretrain.engine.engine import Engine
from pretrain.engine.fsops import FileSum
from pretrain.engine.restore import PUBLISHED, Restorer
from pretrain.engine.run_state import RunState
from pretrain.engine.settings import CheckpointConfig
from pretrain.engine.stored import rank_file, write_pieces
from pretrain.errors import CrashLoopError, SavedForLater

_MAX_FAILURES = 3
_MAX_IN_VAIN = 3  # attempts of one job in a row that published nothing
_HEADROOM = 1.2
_CAUTION = 1.5  # a save is begun where so many times what the last one took are left
_SLOW_S = 600.0  # a write in the background that takes longer is told of
_LOG = logging.getLogger(__name__)


@dataclass
class _Draft:
    """A checkpoint that is being written."""

    state: RunState
    temporary: Path
    final: Path
    began: float
    slow: bool = False  # and was told of


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
        self._flying: tuple[_Draft, Background[FileSum]] | None = None
        number, seconds = together(lambda: self._take_number(job) if self._is_main else (0, None))[0]
        self.attempt: int = number
        self._seconds: float | None = seconds  # that the last save took
        if self.attempt == 0:
            raise CrashLoopError(
                f"job {job} has started {run_dir} {_MAX_IN_VAIN} times in a row without a new checkpoint, and this "
                f"start was not made; look at its log and at lacuna show {run_dir}, mend that, and submit it again"
            )

    def save(self, state: RunState, within_s: float | None = None) -> Path | None:
        """Publishes state; the directory, or None where it could not be written and an older one still stands.

        within_s: when this process will be killed, on the rank that knows. Where a save would take longer, going by
        the last one, none is begun (reliability F5)."""
        self.finish()
        if self.last_step == state.step:
            return self._last_path
        if not self._in_time(state.step, within_s):
            return None
        draft = self._begin(state)
        if draft is None:
            return None
        return self._complete(draft, partial(self._engine.save_slices, draft.temporary))

    def start(self, state: RunState) -> None:
        """Copies state to the host and begins to write it in the background; an earlier one is finished before."""
        self.finish()
        draft = None if self.last_step == state.step else self._begin(state)
        if draft is None:
            return
        pieces, facts = self._engine.snapshot()
        path = rank_file(draft.temporary, self._engine.rank)
        self._flying = draft, Background(partial(write_pieces, path, pieces, facts))

    @property
    def written(self) -> bool:
        """Whether this rank has nothing left to write of what `start` began; not collective."""
        if self._flying is None:
            return True
        draft, writing = self._flying
        if not writing.over and not draft.slow and time.monotonic() - draft.began > _SLOW_S:
            draft.slow = True
            self._tell("checkpoint slow", step=draft.state.step, seconds=round(time.monotonic() - draft.began))
        return writing.over

    def finish(self) -> Path | None:
        """Publishes what `start` began, after waiting for it; the directory, or None where there is none or it failed.

        To be called on all ranks once `written` is true on all, which costs no wait."""
        if self._flying is None:
            return None
        draft, writing = self._flying
        self._flying = None
        return self._complete(draft, writing.result)

    def require_ours(self) -> None:
        """Raises FencedError, on all ranks alike, where a newer attempt owns the run: before its files are written."""
        together(lambda: self._attempts.require(self.attempt) if self._is_main else None)

    def restore(self, expected: RunState, *, allow_change: bool = False) -> RunState:
        """Loads the newest checkpoint that verifies on all ranks; expected itself for a run without history.

        expected is the state of this run at step 0: its constants must be those stored, unless allow_change.
        """
        restorer = Restorer(self._run_dir, self._engine, self._attempts, self._tell)
        state, path = restorer.restore(expected, self.attempt, allow_change=allow_change)
        if path is not None:
            self.last_step, self._last_path = state.step, path
        return state

    @property
    def _is_main(self) -> bool:
        return self._engine.rank == 0

    def _take_number(self, job: str | None) -> tuple[int, float | None]:
        """A fresh attempt's, or 0 where the job goes round in circles; and what the run's last save took, seconds."""
        if job is not None and self._attempts.without_progress(job) >= _MAX_IN_VAIN:
            return 0, None
        return self._attempts.open(self._engine.world, job), self._attempts.last_seconds()

    def _in_time(self, step: int, within_s: float | None) -> bool:
        known = gather_json([within_s, self._seconds])
        left = min((within for within, _ in known if within is not None), default=None)
        seconds = max((seconds for _, seconds in known if seconds is not None), default=None)
        if left is None or seconds is None or _CAUTION * seconds <= left:
            return True
        self._tell("checkpoint skipped", step=step, reason=f"the last took {seconds:.1f} s and {left:.1f} s are left")
        return False

    def _begin(self, state: RunState) -> _Draft | None:
        """A draft that may be written; None where that would fail."""
        final = self._dir / directory_name(state.step, self.attempt)
        draft = _Draft(state, self._dir / f".tmp-{final.name}", final, time.monotonic())
        try:
            together(lambda: self._make_room(draft) if self._is_main else None)
        except FailedTogether as failure:
            self._give_up(draft, failure)
            return None
        return draft

    def _make_room(self, draft: _Draft) -> None:
        """The lease is still ours, there is space for all, and nothing of an earlier try is in the way."""
        self._attempts.require(self.attempt)
        if self.before_save is not None:
            self.before_save()
        for leftover in (draft.temporary, draft.final):
            if leftover.exists():
                self._discard(leftover)
        fsops.mkdir(draft.temporary)
        needed = int(_HEADROOM * self._engine.state_bytes() * self._engine.world)
        free = fsops.free_bytes(draft.temporary)
        if free < needed:
            raise OSError(f"{needed / 1e9:.2f} GB are needed in {self._dir} and {free / 1e9:.2f} GB are free")

    def _complete(self, draft: _Draft, write: Callable[[], FileSum]) -> Path | None:
        """Publishes once write, which writes this rank's file or waits for the thread that does, is done on all."""
        try:
            sums = together(lambda: asdict(write()))
            self._seconds = seconds = time.monotonic() - draft.began
            together(lambda: self._publish(draft, sums, seconds) if self._is_main else None)
        except FailedTogether as failure:
            self._give_up(draft, failure)
            return None
        self._failures = 0
        self.last_step, self._last_path = draft.state.step, draft.final
        self._tell("checkpoint", step=draft.state.step, path=draft.final.name)
        if self._is_main:
            self._prune()
        return draft.final

    def _publish(self, draft: _Draft, sums: list[dict[str, Any]], seconds: float) -> None:
        state = draft.state
        files = {rank_file(draft.temporary, rank).name: FileSum(**entry) for rank, entry in enumerate(sums)}
        optim = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self._engine.optim).items()}
        commit = Commit(state.step, self.attempt, self._engine.layout_kind, asdict(state), optim, files)
        fsops.write(draft.temporary / COMMIT, [commit.encode()])
        fsops.fsync_dir(draft.temporary)
        self._attempts.require(self.attempt)
        fsops.rename(draft.temporary, draft.final)
        self._attempts.published(self.attempt, state.step, seconds)
        fsops.point_link(self._run_dir / "latest", f"ckpt/{draft.final.name}")

    def _give_up(self, draft: _Draft, failure: FailedTogether) -> None:
        self._failures += 1
        if self._is_main:
            fsops.remove_tree(draft.temporary)
        self._tell("checkpoint failed", step=draft.state.step, reason=str(failure), in_a_row=self._failures)
        if self._failures >= _MAX_FAILURES:
            raise SavedForLater(
                f"{self._failures} checkpoints in a row could not be written, the last because: {failure}. That of "
                f"step {self.last_step} stands; make room or repair the storage, and run the same command again"
            ) from failure

    def _prune(self) -> None:
        """Keeps the newest and the milestones; the others lose their name first, so a kill leaves no half one."""
        keep, every = max(2, self._cfg.keep), self._cfg.milestone_every
        old = [name for name in fsops.names(self._dir) if PUBLISHED.fullmatch(name)][::-1][keep:]
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

    def _tell(self, kind: str, **facts: Any) -> None:
        if self._is_main:
            if kind != "checkpoint":
                _LOG.warning("%s: %s", kind, facts)
            if self.on_event is not None:
                self.on_event(kind, **facts)
