"""The one door to timm and torchvision, both imported only when something asks for them.

torchvision's wheel on PyPI is a CUDA build: beside a CPU build of torch its import ends in `operator torchvision::nms
does not exist`, and timm's with it. Declaring the two operators that nothing here calls lets the Python part of
torchvision load. Where torchvision fits torch, as with every CUDA build, nothing is declared. timm also imports wandb
where that is installed (0.4 s); it starts nothing, so it is left alone.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from pretrain.errors import ConfigError

_declared: list[torch.library.Library] = []  # a Library's operators live as long as it does


def ensure_torchvision() -> ModuleType:
    """The torchvision module, or a ConfigError in words. Declares the missing operators only where the import fails
    for want of them on a CPU build of torch; `torchvision.ops.nms` and its own JPEG decoder do not work then."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ConfigError("torchvision is not installed and timm needs it; install both: "
                          "pip install timm torchvision") from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        if not _is_cpu_build() or _declared:
            raise ConfigError(f"torchvision does not fit torch {torch.__version__} ({error}); install the torchvision "
                              "built for it from the same place as torch") from error
    _declare_operators()
    _forget("torchvision")
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """The timm module, or a ConfigError that says how to install it."""
    ensure_torchvision()
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ConfigError("timm is not installed; install it: pip install timm") from error


def _is_cpu_build() -> bool:
    return torch.version.cuda is None and getattr(torch.version, "hip", None) is None


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
