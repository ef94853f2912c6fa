"""Masked-image-modelling pretraining: data, backbones, objectives, engine, tracking, evaluation, export.

`masking` and `launch` are also names of other people's packages (ROS 2 ships a `launch`), and whichever comes first on
sys.path wins. Training with a foreign one would fail far away from the cause, so importing `pretrain` looks first.
"""

import importlib.util
import os

_HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def _refuse_foreign(package: str) -> None:
    """ImportError where the `package` that Python finds is not the one beside this file. Nothing is imported."""
    ours = os.path.join(_HOME, package, "__init__.py")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"lacuna's package `{package}` should be {ours} and is missing; install lacuna again")
    found = spec.origin or next(iter(spec.submodule_search_locations or ()), "built in")
    if os.path.realpath(found) != ours:
        raise ImportError(
            f"`{package}` is {found}, another project's package, and hides lacuna's own at {ours}; "
            "take its folder out of PYTHONPATH, or start from another directory"
        )


for _package in ("masking", "launch"):
    _refuse_foreign(_package)
