"""Items of a webdataset pipeline, made ahead by worker processes and handed over in order; and what is said of workers
that die, hang or cannot read.

Workers come from a fork server, a clean process that has imported this package and nothing else of the run: a fork of
the training process would copy the locks of its CUDA, NCCL, gloo and OpenMP threads, and may deadlock on one. The price
is that of every `multiprocessing` program that does not fork: a script that trains needs its `__name__` guard.

The fork server and its workers block the signals that ask a job to end. A scheduler sends those to every process of a
job, and the batch of the step being made must still arrive; the training process ends its workers itself."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import webdataset as wds
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pretrain.errors import ConfigError, LacunaError, SavedForLater

_POLL_S = 2.0  # how often a waiting fetcher looks whether its workers live
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PRELOAD = ["pretrain.data.loader"]
_MEANINGS = {signal.SIGKILL: "out of memory?", signal.SIGBUS: "/dev/shm full?", signal.SIGSEGV: "a crash in a decoder?"}
_AGAIN = "the last checkpoint stands; run the same command again to go on from it"


@dataclass(frozen=True)
class Refusal:
    """A LacunaError on its way from a worker to the training process, as the item that could not be made."""

    kind: type[LacunaError]
    text: str


def refusals(items: Iterator[Any]) -> Iterator[Any]:
    """The last stage of a pipeline: a LacunaError becomes its last item, so that it surfaces in its turn, in words."""
    try:
        yield from items
    except LacunaError as error:
        yield Refusal(type(error), str(error))


class Fetcher:
    """Iterates a pipeline's items in order, whatever the number of workers; 0 makes them in this process.

    timeout_s bounds the wait for one item; `awaited` says in words what it would have held."""

    def __init__(
        self, pipeline: wds.DataPipeline, *, workers: int, prefetch: int, timeout_s: float, pin: bool = False,
        awaited: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self._timeout_s, self._awaited = timeout_s, awaited
        options: dict[str, Any] = {}
        if workers:
            _start_fork_server()
            options = {"multiprocessing_context": "forkserver", "timeout": min(_POLL_S, timeout_s)}
            options |= {"prefetch_factor": prefetch, "worker_init_fn": _end_with_parent}
        others = set(multiprocessing.active_children())
        options |= {"batch_size": None, "num_workers": workers, "pin_memory": pin, "collate_fn": _as_it_is}
        loader = wds.WebLoader(pipeline, **options)
        self._items: Iterator[Any] | None = iter(loader.stage(0))  # a generator around it would not survive a poll
        self._processes = [child for child in multiprocessing.active_children() if child not in others]
        weakref.finalize(self, _end, self._items, self._processes)
        atexit.register(_kill, self._processes)  # before multiprocessing's, which would wait for them

    def __iter__(self) -> Fetcher:
        return self

    def __next__(self) -> Any:
        """The next item; SavedForLater where a worker died or gave nothing for timeout_s, or the worker's own error."""
        began = time.monotonic()
        while True:
            if self._items is None:
                raise StopIteration
            try:
                item = next(self._items)
                break
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                self._explain(error, time.monotonic() - began)
        if isinstance(item, Refusal):
            self.close()
            raise item.kind(item.text)
        return item

    def close(self) -> None:
        """Ends the workers. What they had made ahead is dropped; a pure function can make it again."""
        items, self._items = self._items, None
        _end(items, self._processes)

    def _explain(self, error: Exception, waited_s: float) -> None:
        """Returns where waiting goes on; raises otherwise."""
        text = str(error)
        if text.startswith("Caught ") or not self._processes:  # raised by our own code, with its traceback
            raise error
        if "timed out after" in text:
            if waited_s < self._timeout_s:
                return
            self.close()
            raise SavedForLater(
                f"the loader gave nothing for data.timeout_s={self._timeout_s:g} s{self._awaited()}; "
                f"is the storage up? {_AGAIN}"
            ) from error
        if isinstance(error, RuntimeError) and "exited unexpectedly" not in text and "killed by signal" not in text:
            raise error
        how = _death(self._processes)
        self.close()
        raise SavedForLater(f"a loader worker died{how}{self._awaited()}; {_AGAIN}") from error


def check_shared_memory(num_items: int, item_bytes: int, folder: str = "/dev/shm") -> None:
    """ConfigError where the items that may wait in shared memory at one time do not fit into what is free of it."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return
    need, free = num_items * item_bytes, state.f_bavail * state.f_frsize
    if need > free:
        raise ConfigError(
            f"{num_items} batches of {item_bytes / 1e6:.1f} MB may wait in {folder}, {need / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free there; lower data.prefetch, data.workers or data.batch_size, "
            "or enlarge it (docker: --shm-size)"
        )


def _end_with_parent(_worker: int) -> None:
    """Kills this worker when the training process is gone. Its parent is the fork server, which lives as long as any of
    its workers does, so that torch's watch over the parent's id would never see it go."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(item: Any) -> Any:
    """In the place of torch's conversion: a small array travels in the message, a tensor needs a file of its own."""
    return item


def _start_fork_server() -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # tracker, server and its workers inherit it
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # starting the tracker unblocked two of them
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _death(processes: list[BaseProcess]) -> str:
    """How the first worker that did not end well ended."""
    for process in processes:
        code = process.exitcode
        if code is not None and code < 0:
            number = signal.Signals(-code)
            return f" (pid {process.pid}, signal {-code}: {_MEANINGS.get(number, number.name)})"
        if code:
            return f" (pid {process.pid}, exit code {code})"
    return ""


def _end(items: Iterator[Any] | None, processes: list[BaseProcess]) -> None:
    """Kills the workers of torch's iterator, and keeps it from ending them in its own way: that takes a lock which a
    worker may hold when it is killed, and then waits for ever."""
    _kill(processes)
    if isinstance(items, _MultiProcessingDataLoaderIter):
        items._shutdown = True
        if items._worker_pids_set:  # by its address, which the next iterator of this process may well be given
            signal_handling._remove_worker_pids(id(items))  # type: ignore[attr-defined]  # of its C part
            items._worker_pids_set = False
        if hasattr(items, "_pin_memory_thread"):
            items._pin_memory_thread_done_event.set()
        for queue in items._index_queues:
            queue.cancel_join_thread()
            queue.close()


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join(timeout=5.0)
    processes.clear()
