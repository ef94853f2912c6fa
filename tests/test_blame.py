"""What ends a run is told to its user in a sentence, unless it is our own fault."""

import errno
from pathlib import Path

import pytest
import torch

from pretrain.blame import explained
from pretrain.errors import ConfigError, SavedForLater

CKPT = Path("runs/first/ckpt")


def test_a_first_step_that_does_not_fit_is_a_setting_and_a_later_one_an_accident():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")
    first, later = explained(error, CKPT, 0), explained(error, CKPT, 12)
    assert isinstance(first, ConfigError) and "engine.accumulation" in str(first) and first.exit_code == 78
    assert isinstance(later, SavedForLater) and "after 12 steps (CUDA out of memory)" in str(later)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4"), "another process"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "the storage refuses to go on"),
        (OSError(errno.ESTALE, "Stale file handle", "x"), "the storage refuses to go on"),
    ],
)
def test_peers_and_storage_are_named_with_what_stands_and_what_to_do(error, said):
    meaning = explained(error, CKPT, 3)
    assert isinstance(meaning, SavedForLater) and str(meaning).startswith(said)
    assert "runs/first/ckpt stands" in str(meaning) and "run the same command again" in str(meaning)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), PermissionError(errno.EACCES, "no", "x"), KeyError("x")])
def test_a_bug_stays_a_bug(error):
    assert explained(error, CKPT, 3) is None
