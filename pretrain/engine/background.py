"""One piece of work in a thread of its own, for a loop that wants to know whether it is over without waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs act at once, beside the caller; a process that ends does not wait for it."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it is done or has failed."""
        return not self._thread.is_alive()

    def result(self) -> T:
        """Waits; what act returned. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # act has returned

    def _run(self) -> None:
        try:
            self._value = self._act()
        except BaseException as error:  # raised again by result
            self._error = error
