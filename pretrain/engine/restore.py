"""Finds the newest checkpoint that verifies on all ranks, sets aside what does not, and refuses what is of another run.

Rank 0 says which directories there are, for others may still see an older listing of a network file system; every rank
then hashes what it reads, and one that is bad for any rank is bad for all. A run with history never starts at step 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.engine import fsops
from pretrain.engine.agree import FailedTogether, gather_json, together
from pretrain.engine.attempts import Attempts
from pretrain.engine.commit import BadCheckpoint, Commit, verify
from pretrain.engine.engine import Engine
from pretrain.engine.run_state import CONSTANTS, RunState, state_of
from pretrain.engine.stored import rank_file
from pretrain.engine.trust import objection
from pretrain.errors import CheckpointError

PUBLISHED = re.compile(r"\d{10}-a\d{6}")  # a checkpoint's directory


class Restorer:
    """Reads the checkpoints of run_dir into engine. Every method is collective."""

    def __init__(self, run_dir: Path, engine: Engine, attempts: Attempts, tell: Callable[..., None]) -> None:
        """tell(kind, **facts) hears what was refused."""
        self._run_dir, self._dir, self._engine = run_dir, run_dir / "ckpt", engine
        self._attempts, self._tell = attempts, tell

    def restore(self, expected: RunState, attempt: int, *, allow_change: bool) -> tuple[RunState, Path | None]:
        """The state of the newest checkpoint that verifies, and where it is; expected and None for a run without
        history. attempt is our own. Raises CheckpointError where there was one and none is left, where others could
        have written it, or where expected's constants differ."""
        names = together(lambda: self._tidy() if self._is_main else [])[0]
        self._require_trusted([self._dir / name for name in names], attempt)
        for name in names:
            commit = self._verified(self._dir / name)
            if commit is None:
                continue
            state = state_of(commit)
            if not allow_change:
                self._require_same_run(commit, state, expected)
            try:
                together(partial(self._engine.load_slices, self._dir / name))
            except FailedTogether as failure:
                self._tell("checkpoint unreadable", path=name, reason=str(failure))
                continue
            return state, self._dir / name
        self._require_no_history(names)
        return expected, None

    @property
    def _is_main(self) -> bool:
        return self._engine.rank == 0

    def _tidy(self) -> list[str]:
        """Removes what killed attempts left; names of the candidates, newest first."""
        names = fsops.names(self._dir)
        for name in names:
            if name.startswith((".tmp-", ".trash-")):
                fsops.remove_tree(self._dir / name)
        return sorted((name for name in names if PUBLISHED.fullmatch(name)), reverse=True)

    def _require_trusted(self, candidates: list[Path], attempt: int) -> None:
        found = together(lambda: objection(self._run_dir, candidates, self._attempts.owner(attempt)))
        if any(found):
            raise CheckpointError(next(filter(None, found)))

    def _verified(self, directory: Path) -> Commit | None:
        """The commit all ranks found and agree on; a directory that is bad for any of them is set aside by name."""
        verdict, commit = self._verdict(directory)
        verdicts = gather_json(verdict)
        if all(v["sum"] is not None and v["sum"] == verdicts[0]["sum"] for v in verdicts):
            return commit
        reasons = [f"rank {rank}: {v['reason']}" for rank, v in enumerate(verdicts) if v["reason"]]
        bad = any(v["bad"] for v in verdicts)
        reason = "; ".join(reasons) or "the ranks read different ones"
        self._tell("checkpoint refused", path=directory.name, reason=reason)
        together(lambda: self._quarantine(directory) if bad and self._is_main else None)
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
        for name, key in CONSTANTS.items():
            stored, here = getattr(state, name), getattr(expected, name)
            if stored != here:
                raise CheckpointError(
                    f"{key} was {stored} in the checkpoint of step {state.step} and is {here} now: other samples would "
                    "follow; use the old value, another name=..., or --fresh"
                )
        for key in ("betas", "eps", "weight_decay", "layer_decay", "clip_norm"):
            value = getattr(self._engine.optim, key)
            here = list(value) if isinstance(value, tuple) else value
            if commit.optim.get(key) != here:
                raise CheckpointError(
                    f"optim.{key} was {commit.optim.get(key)} in the checkpoint of step {state.step} and is {here} "
                    "now; use the old value, another name=..., or --allow-change"
                )

    def _require_no_history(self, names: list[str]) -> None:
        last = together(lambda: self._history(names) if self._is_main else None)[0]
        if last is not None:
            raise CheckpointError(
                f"{self._run_dir} has published checkpoints ({last}), and none of them verifies now; what is left is "
                f"in {self._dir}. Nothing was overwritten: bring one back, or start anew with --fresh"
            )

    def _history(self, names: list[str]) -> str | None:
        step = self._attempts.last_published()
        if step is not None:
            return f"the last of step {step}"
        found = names or [name for name in fsops.names(self._dir) if name.startswith(".bad-")]
        return found[0] if found else None
