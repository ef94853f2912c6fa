"""Every draw in the system is named here: a keyed integer hash, and torch generators seeded by it.

`prf` is plain 64-bit integer arithmetic (splitmix64's finaliser, absorbed element by element), so its values are the
same on every platform and for ever; tests pin some of them. No state is carried: a draw is named by its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: consecutive integers land far apart
_TEXT = 0xD1B54A32D192ED03  # added to strings, so that "1" and 1 are different names
_FNV_BASIS, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def prf(seed: int, *path: int | str) -> int:
    """A number in [0, 2**63) named by the seed and the path, e.g. prf(seed, "mask", step)."""
    state = _mix(seed & _WORD)
    for part in path:
        state = _mix((state * _STEP + _word(part)) & _WORD)
    return state >> 1


def prf_array(seed: int, *path: Any) -> Any:
    """`prf` where parts of the path may be integer numpy arrays (they broadcast): uint64 array of the same numbers."""
    state: Any = _mix(seed & _WORD)
    for part in path:
        if hasattr(part, "astype"):
            word = part.astype("uint64")  # negative int64 wraps to the same word as in `prf`
            state = word + _product(state) if isinstance(state, int) else state * _STEP + word
            state = _mix_array(state)
        elif isinstance(state, int):
            state = _mix((state * _STEP + _word(part)) & _WORD)
        else:
            state = _mix_array(state * _STEP + _word(part))
    return state >> 1


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on the device, seeded by `prf(seed, *path)`. It never waits for the device."""
    import torch  # here, so that what only hashes (the order of a billion samples) does without its 200 MB

    rng = torch.Generator(device=device)
    rng.manual_seed(prf(seed, *path))
    return rng


def _word(part: int | str) -> int:
    if isinstance(part, str):
        value = _FNV_BASIS
        for byte in part.encode():
            value = ((value ^ byte) * _FNV_PRIME) & _WORD
        return (value + _TEXT) & _WORD
    return int(part) & _WORD


def _mix(state: int) -> int:
    state = (state + _STEP) & _WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
    return state ^ (state >> 31)


def _product(state: int) -> int:
    return (state * _STEP) & _WORD


def _mix_array(state: Any) -> Any:
    state = state + _STEP  # uint64 arrays wrap by themselves
    state ^= state >> 30
    state *= 0xBF58476D1CE4E5B9
    state ^= state >> 27
    state *= 0x94D049BB133111EB
    state ^= state >> 31
    return state
