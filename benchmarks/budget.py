"""Bytes moved and kernels launched by one training step, counted without running it: `python benchmarks/budget.py`.

Forward and backward of MAE run on fake tensors, which have shapes and no values; each operation below autograd counts
as one kernel that reads its inputs and writes its outputs once, views are free, and an expanded dimension is read once.
The figures do not depend on the machine, so a committed limit catches what no timer would. They are what eager mode
moves; a compiler may fuse more, and caches may save some of it.

Ends with 1 when a limit is exceeded; writes benchmarks/results/budget.json."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from masking.attention import op  # noqa: E402
from masking.mask import Grid, Mask  # noqa: E402
from pretrain.backbones.vit import ViTConfig  # noqa: E402
from pretrain.objectives.pixel import PixelMAEConfig  # noqa: E402

_aten = torch.ops.aten
_FREE = {_aten.detach.default, _aten._unsafe_view.default, _aten.lift_fresh.default, _aten.new_empty.default}
_FREE |= {_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default}
_FREE |= {_aten.new_empty_strided.default, torch.ops.prim.device.default}


@dataclass(frozen=True)
class Case:
    """One line of the table and what it may cost."""

    name: str
    size: str
    max_mb: float  # megabytes (1e6) an image
    max_kernels: int  # a step


@dataclass(frozen=True)
class Count:
    """What a step costs."""

    mb_per_image: float
    kernels: int


CASES = (
    Case("mae-vitb16", "base", 330, 660),
    Case("mae-vitl16", "large", 530, 1020),
)
BATCH = 64


class Meter(TorchDispatchMode):
    """Adds up the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func not in _FREE:
            name = str(func).removeprefix("aten.")
            self.kernels[name] += 1
            self.bytes[name] += _size((args, kwargs)) + _size(result)
        return result


def count(size: str, batch: int = BATCH, meter: Meter | None = None) -> Count:
    """Forward and backward of MAE on ViT-`size`/16 at 224 pixels, bf16 weights and attention as on a GPU."""
    meter = meter or Meter()
    with FakeTensorMode(), op.forced("sdpa"):
        backbone = ViTConfig(size).build(Grid(14, 14), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        objective = PixelMAEConfig().build(backbone)
        _to_bf16(backbone)
        _to_bf16(objective)
        images = torch.zeros(batch, 3, 224, 224, dtype=torch.uint8)
        mask = Mask.cut(torch.rand(batch, 196), 49)
        with meter:
            losses, _ = objective(backbone, images, mask, objective.target(images))
            losses["pixel"].mean().backward()
    return Count(sum(meter.bytes.values()) / batch / 1e6, sum(meter.kernels.values()))


def _to_bf16(module: nn.Module) -> None:
    """module.bfloat16(), which fake parameters do not survive."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            setattr(child, name, nn.Parameter(parameter.detach().to(torch.bfloat16)))
        for name, buffer in child.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(child, name, buffer.to(torch.bfloat16))


def _size(tree: Any) -> int:
    """Bytes of all tensors in tree, an expanded dimension counted once."""
    total = 0
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            elements = 1
            for length, stride in zip(leaf.shape, leaf.stride(), strict=True):
                elements *= length if stride else 1
            total += elements * leaf.element_size()
    return total


def main() -> int:
    """Prints every case beside its limit; 1 if one is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", action="store_true", help="list the operations of every case, the costliest first")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args()
    rows, failed = [], False
    print(f"batch {BATCH}, bf16 weights, forward and backward, counted (torch {torch.__version__})")
    for case in CASES:
        meter = Meter()
        got = count(case.size, meter=meter)
        over = got.mb_per_image > case.max_mb or got.kernels > case.max_kernels
        failed |= over
        print(
            f"{case.name}: {got.mb_per_image:.1f} MB/image (limit {case.max_mb:g}), "
            f"{got.kernels} kernels (limit {case.max_kernels}){'  EXCEEDED' if over else ''}"
        )
        if options.by:
            for name, size in meter.bytes.most_common():
                print(f"  {size / BATCH / 1e6:8.2f} MB/image {meter.kernels[name]:5d} x {name}")
        rows.append({**asdict(case), **asdict(got)})
    if not options.no_write:
        facts = {"command": "python benchmarks/budget.py", "machine": "counted on fake tensors, the same everywhere"}
        _write({**facts, "date": str(date.today()), "torch": torch.__version__, "batch": BATCH, "cases": rows})
    return int(failed)


def _write(record: dict[str, Any]) -> None:
    path = ROOT / "benchmarks" / "results" / "budget.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
