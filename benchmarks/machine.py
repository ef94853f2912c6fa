"""What every benchmark asks of the machine: its name, what is installed, and when the device is done."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: torch.device | str) -> str:
    """The name of the GPU, or the processor and how many cores it has."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores"


def versions() -> dict[str, str]:
    """Of what decides speed."""
    return {"torch": torch.__version__, "python": platform.python_version()}


def wait(device: torch.device | str) -> None:
    """Until all that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
