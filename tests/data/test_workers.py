"""Worker processes give items in order, say in words how they failed, outlive the signals of a scheduler, and never
outlive the training process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import signal_handling

from pretrain.data.workers import Fetcher, check_shared_memory, refusals
from pretrain.errors import ConfigError, DataError, SavedForLater


class Numbers(IterableDataset):
    def __init__(self, end: int | None = None) -> None:
        self.end = end

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        yield from count(first, stride) if self.end is None else range(first, self.end, stride)


def troubled(items: Iterator[int], at: int, trouble: str) -> Iterator[int]:
    for item in items:
        if item == at:
            if trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "hangs":
                time.sleep(3600)
            if trouble == "no data":
                raise DataError("a.tar cannot be read: EIO")
            raise KeyError("a bug")
        yield item


def fetcher(
    workers: int, trouble: str = "none", at: int = -1, end: int | None = None, timeout_s: float = 60
) -> Fetcher:
    pipeline = wds.DataPipeline(Numbers(end), partial(troubled, at=at, trouble=trouble), refusals)
    return Fetcher(pipeline, workers=workers, prefetch=2, timeout_s=timeout_s, awaited=lambda: " while reading a.tar")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_items_come_in_order_and_end(workers: int) -> None:
    assert list(fetcher(workers, end=11)) == list(range(11))


def test_a_closed_fetcher_leaves_nothing_registered_that_a_later_one_could_run_into() -> None:
    """torch knows the workers of an iterator by its address, and refuses to note two sets of them for one."""
    first = fetcher(1)
    assert next(first) == 0
    address = id(first._items)
    first.close()
    signal_handling._set_worker_pids(address, (os.getpid(),))  # what an iterator at the same address would do
    signal_handling._remove_worker_pids(address)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_refuses_surfaces_in_its_turn_with_its_own_words(workers: int) -> None:
    items = fetcher(workers, "no data", at=5)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError) as caught:
        next(items)
    assert str(caught.value) == "a.tar cannot be read: EIO"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_a_worker_keeps_its_type_and_its_traceback(workers: int) -> None:
    items = fetcher(workers, "bug", at=1)
    next(items)
    with pytest.raises(KeyError, match="a bug"):
        next(items)
    items.close()


def test_a_dead_worker_ends_the_attempt_and_says_what_killed_it() -> None:
    items = fetcher(2, "killed", at=4)
    with pytest.raises(SavedForLater, match=r"worker died \(pid \d+, signal 9: out of memory\?\) while reading a\.tar"):
        list(items)
    assert multiprocessing.active_children() == []


def test_a_hanging_worker_ends_the_attempt_after_the_timeout() -> None:
    items = fetcher(2, "hangs", at=4, timeout_s=0.5)
    with pytest.raises(SavedForLater, match=r"nothing for data\.timeout_s=0\.5 s while reading a\.tar"):
        list(items)
    assert multiprocessing.active_children() == []


def test_a_wait_longer_than_a_poll_loses_nothing() -> None:
    items = fetcher(2, timeout_s=60)
    items._items._timeout = 0.001  # type: ignore[union-attr]
    assert [next(items) for _ in range(30)] == list(range(30))
    items.close()


def test_a_worker_that_was_killed_with_a_lock_in_its_hands_keeps_nobody_waiting() -> None:
    items = fetcher(2)
    next(items)
    items._items._workers_done_event._cond.acquire()  # type: ignore[union-attr]
    closing = threading.Thread(target=items.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive() and multiprocessing.active_children() == []


def test_an_abandoned_fetcher_leaves_no_process() -> None:
    items = fetcher(2)
    next(items)
    del items
    assert multiprocessing.active_children() == []


def test_items_that_cannot_fit_are_refused_and_an_unknown_folder_is_not_judged() -> None:
    with pytest.raises(ConfigError, match=r"3 batches of 1000000000000\.0 MB may wait in /dev/shm, 3000000000\.00 GB"):
        check_shared_memory(3, 10**18)
    check_shared_memory(3, 10**18, "/no/such/folder")
    check_shared_memory(1, 1)


_SCRIPT = """
import os, signal, sys
import multiprocessing
from tests.data.test_workers import fetcher

def main():
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    items = fetcher(2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[1] == "signals":
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.killpg(0, number)
        assert [next(items) for _ in range(20)] == list(range(3, 23))
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    # leaves without close, as after an exception

if __name__ == "__main__":
    main()
"""


def _run(folder: Path, how: str) -> tuple[int, list[int], str]:
    script = folder / "script.py"
    script.write_text(_SCRIPT)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script), how], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True,
        start_new_session=True, timeout=120,
    )  # fmt: skip
    return done.returncode, [int(pid) for pid in done.stdout.split()], done.stderr


def test_workers_outlive_the_signals_that_a_scheduler_sends_to_the_whole_job(tmp_path: Path) -> None:
    code, workers, words = _run(tmp_path, "signals")
    assert code == 0 and len(workers) == 2
    assert "resource_tracker" not in words, words
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_when_the_training_process_is_killed(tmp_path: Path) -> None:
    code, workers, _ = _run(tmp_path, "kill")
    assert code == -signal.SIGKILL and len(workers) == 2
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError("workers live on")
