"""Reading again where trying again may help: a network or a disk that stumbles must not change what is trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from masking.rng import prf
from pretrain.errors import DataError

Value = TypeVar("Value")
TRIES = 5
BACKOFF_S = 0.2  # before the second try, then three times as long each time: 8 s in all


def retry(action: Callable[[], Value], what: str) -> Value:
    """What action() returns; an OSError (EIO, ESTALE, a timeout, ...) is tried 5 times, then a DataError.

    The jitter comes from the name, not from the clock, and differs between the things that many ranks wait for."""
    for attempt in range(TRIES):
        try:
            return action()
        except OSError as error:
            if attempt == TRIES - 1:
                raise DataError(
                    f"{what} cannot be read ({error}; tried {TRIES} times); "
                    "no sample was skipped: see that it is there and readable, then run the same command again"
                ) from error
            jitter = 0.75 + 0.5 * prf(0, "retry", what, attempt) / 2**63
            time.sleep(BACKOFF_S * 3**attempt * jitter)
    raise AssertionError("unreachable")
