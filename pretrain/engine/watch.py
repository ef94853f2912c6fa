"""Reads, every few steps, whether steps were skipped; ends the run after too many in a row, and keeps what they ate.

The flag of a step stays on the device. A batch is held until its flag has come over (a copy nobody waits for), then
dropped, or written to skipped/step-*/ with what a replay needs: step, positions, images; the seed gives the masks.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.engine.engine import Engine
from pretrain.errors import NumericalError
from pretrain.types import Batch

_MAX_DUMPS = 10  # of one attempt


@dataclass
class _Seen:
    step: int
    batches: Sequence[Batch]
    flag: Tensor  # () on the host; valid once ready
    ready: torch.cuda.Event | None


class Watch:
    """Counts steps that the engine skipped because loss or gradient was not finite."""

    def __init__(self, max_skipped: int, run_dir: Path, engine: Engine) -> None:
        self.skipped = 0  # in this attempt
        self._max, self._dir, self._engine = max_skipped, run_dir / "skipped", engine
        self._pending: deque[_Seen] = deque()
        self._in_a_row = self._most = 0
        self._dumps = 0

    def note(self, step: int, batches: Sequence[Batch], flag: Tensor) -> None:
        """Remembers step until its flag () can be read without waiting."""
        ready = None
        if flag.device.type == "cuda":
            flag = flag.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append(_Seen(step, batches, flag, ready))
        while self._pending and (self._pending[0].ready is None or self._pending[0].ready.query()):
            self._settle(self._pending.popleft())

    def check(self) -> None:
        """Waits for every flag. Raises NumericalError, on all ranks alike, after max_skipped skipped steps in a row."""
        while self._pending:
            seen = self._pending.popleft()
            if seen.ready is not None:
                seen.ready.synchronize()
            self._settle(seen)
        if self._most >= self._max:
            state = self._dir / "state"
            state.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # of an earlier abort
                self._engine.save_slices(state)
            raise NumericalError(
                f"{self._most} steps in a row had a loss or gradient that is not finite and were skipped; nothing "
                f"of them is in the weights. Their batches are in {self._dir}, weights and moments in {state}; lower "
                "optim.base_lr or look at the data"
            )

    def _settle(self, seen: _Seen) -> None:
        if float(seen.flag) == 0:
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        self._most = max(self._most, self._in_a_row)
        if self._dumps < _MAX_DUMPS:
            self._dumps += 1
            self._dump(seen)

    def _dump(self, seen: _Seen) -> None:
        """This rank's part of a skipped step; no update was made since, so the newest weights are those it met."""
        folder = self._dir / f"step-{seen.step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for micro, batch in enumerate(seen.batches):
            for name in ("images", "labels", "weight", "positions"):
                tensors[f"{micro}.{name}"] = getattr(batch, name).detach().cpu().clone()
        save_file(tensors, folder / f"batch-rank{self._engine.rank:05d}.safetensors")
        facts = {"step": seen.step, "rank": self._engine.rank, "world": self._engine.world, "micro": len(seen.batches)}
        (folder / f"batch-rank{self._engine.rank:05d}.json").write_text(json.dumps(facts) + "\n")
