"""What a run leaves behind as it goes on: metrics, evaluations, bad samples and events as JSON lines; W&B follows.

The lines are the source of truth: written by rank 0, one object a step, never fetched from anywhere else. A resumed run
first cuts back what its checkpoint does not know of, so its files end up equal to those of a run that never stopped.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.engine import fsops
from pretrain.tracking.access import WandbAccess
from pretrain.tracking.lines import LineFile, Record, keep_lines, read_lines
from pretrain.tracking.settings import TrackingConfig
from pretrain.tracking.wandb_mirror import Mirror, choose_mode

_FILES = ("metrics", "evaluations", "inspections", "ledger", "journal")
_CLOSE_S = 15.0  # how long the end of a run waits for W&B at most


class Tracker:
    """Writes a run's line files on rank 0; on the other ranks every method does nothing."""

    def __init__(
        self,
        run_dir: str | Path,
        config_json: Record,
        cfg: TrackingConfig,
        *,
        is_main: bool = True,
        resume_step: int = 0,
        wandb_id: str | None = None,
        access: WandbAccess | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        """resume_step: steps the restored state has behind it, 0 for a new run. wandb_id: of the checkpoint, if any."""
        self.run_dir = Path(run_dir)
        self.wandb_id = wandb_id
        self._is_main = is_main
        self._warn = warn or _to_stderr
        self._mirror: Mirror | None = None
        self._refused = False  # whether it was said that lines have to wait
        if not is_main:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        cut_back(self.run_dir, resume_step)
        self._files = {name: LineFile(self.run_dir / f"{name}.jsonl") for name in _FILES}
        self._evaluated = _steps(self.run_dir / "evaluations.jsonl")
        self._inspected = _steps(self.run_dir / "inspections.jsonl")
        self._last_step = resume_step
        self.wandb_id = wandb_id or _stored_id(self.run_dir)
        access = access or WandbAccess()
        mode = choose_mode(cfg.wandb, access)
        if mode is not None:
            self._mirror = Mirror(self.run_dir, self.wandb_id, config_json, cfg, mode, access.base_url, self._warn_once)
            self._mirror.start()

    def log(self, records: Sequence[Record]) -> None:
        """Appends step records to metrics.jsonl, in the order of their steps, by one write."""
        if not self._is_main or not records:
            return
        assert records[0]["step"] > self._last_step, (records[0]["step"], self._last_step)
        self._append("metrics", records)
        self._last_step = records[-1]["step"]
        if self._mirror is not None:
            self._mirror.check()

    def evaluation(self, record: Record) -> None:
        """Appends {"step": ..., name: value, ...} to evaluations.jsonl."""
        if self._is_main:
            self._append("evaluations", [record])
            self._evaluated.add(record["step"])

    def has_evaluation(self, step: int) -> bool:
        """Whether an evaluation of this step is already written; rank 0 alone knows."""
        return self._is_main and step in self._evaluated

    def inspection(self, step: int, values: Record) -> None:
        """Appends what an objective says of itself after step to inspections.jsonl; nothing where it says nothing."""
        if self._is_main and values:
            self._append("inspections", [{"step": step, **values}])
            self._inspected.add(step)

    def has_inspection(self, step: int) -> bool:
        """Whether an inspection of this step is already written; rank 0 alone knows."""
        return self._is_main and step in self._inspected

    def ledger(self, records: Sequence[Record]) -> None:
        """Appends bad samples, {"step", "position", "shard", "key", "reason"} each, to ledger.jsonl."""
        if self._is_main and records:
            self._append("ledger", records)

    def panel(self, step: int, path: Path, group: str = "panels") -> None:
        """Notes that the picture of a step was written, so that W&B shows it too: under group, "panels" for
        reconstructions, "alignment", "heterogeneity" or "samples"."""
        path = Path(path)
        inside = path.is_relative_to(self.run_dir)
        shown = path.relative_to(self.run_dir) if inside else path.absolute()
        self.event("panel", step=step, path=shown, **({} if group == "panels" else {"group": group}))

    def event(self, kind: str, **fields: object) -> None:
        """Appends something that happened to the run to journal.jsonl, with its time. The journal is never cut back."""
        if self._is_main:
            self._append("journal", [{"time": round(time.time(), 3), "event": kind, **fields}])

    def sync(self) -> None:
        """Waits until all lines are on the disk; called before a checkpoint that counts on them. Raises OSError where
        they cannot be written."""
        for file in self._files.values() if self._is_main else ():
            file.sync()
        self._refused = False

    def close(self) -> None:
        """Ends the mirror, waiting for it a few seconds at most, and closes the files."""
        if not self._is_main:
            return
        if self._mirror is not None:
            self._mirror.close(self._last_step, _CLOSE_S)
            self._mirror = None
        for file in self._files.values():
            file.close()

    def _append(self, name: str, records: Sequence[Record]) -> None:
        """Lines that the disk refuses wait in memory; a checkpoint, which counts on them, waits for them."""
        try:
            self._files[name].append(records)
        except OSError as error:
            if not self._refused:
                self._warn(f"{name}.jsonl cannot be written now ({error.strerror}); training goes on, lines are kept")
            self._refused = True

    def _warn_once(self, text: str) -> None:
        self.event("wandb", text=text)
        self._warn(text)


def cut_back(run_dir: Path, step: int) -> None:
    """Drops what lies after `step` steps: metrics, bad samples, evaluations and inspections.

    At step 0 nothing of an earlier attempt stays, the evaluation of the untrained weights included."""
    keep_lines(run_dir / "metrics.jsonl", lambda record: record["step"] <= step)
    keep_lines(run_dir / "evaluations.jsonl", lambda record: 0 < step >= record["step"])
    keep_lines(run_dir / "inspections.jsonl", lambda record: 0 < step >= record["step"])
    keep_lines(run_dir / "ledger.jsonl", lambda record: record["step"] <= step)


def _steps(path: Path) -> set[object]:
    return {record.get("step") for record in read_lines(path)}


def _stored_id(run_dir: Path) -> str:
    """The run's W&B id: made once, kept in the run directory; it only needs to be unlike everybody else's."""
    path = run_dir / "wandb-id.txt"
    stored = path.read_text().strip() if path.exists() else ""
    if not stored:
        stored = secrets.token_hex(5)
        fsops.replace(path, stored + "\n")
    return stored


def _to_stderr(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)
