"""Compiles the kernels for GPUs that are not there, and reports what the compiler says of each.

    python -m masking.attention.triton_ahead                  every shipped kernel, with every member of the family
    python -m masking.attention.triton_ahead --quick          the ones a training run meets first
    python -m masking.attention.triton_ahead --write          the same as the first, and into blocks.json

One JSON line a kernel: registers, bytes spilled, shared memory, and how many matrix instructions of each kind. A kernel
that spills, or misses Hopper's own matrix instruction (wgmma) where its blocks are large enough, ends it with 1."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from masking.attention import blocks, triton_launch
from masking.attention.weighting import Weighting

TARGETS = dict(zip(blocks.ARCHES, (90, 80), strict=True))
_ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", torch.int32: "i32"}
_ALIGNED = 16  # bytes, or multiples: what the compiler may assume of a pointer or a stride


def main(arguments: list[str] | None = None) -> int:
    """Compiles; 0 where every kernel is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few members at the lengths of MAE and iLLaMA")
    parser.add_argument("--write", action="store_true", help="put the worst of each kernel into blocks.json")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one target (default: all)")
    options = parser.parse_args(arguments)
    failed, worst = 0, dict[tuple[str, str, bool, int], dict[str, int]]()
    for name, values in cases(options.quick):
        for target in [options.target] if options.target else TARGETS:
            made = compiled(name, values["tensors"], values["numbers"], target)
            report = {**values["case"], "kernel": name, "target": target, **made}
            wrong = faults(report)
            failed += bool(wrong)
            print(json.dumps({**report, "wrong": wrong}), flush=True)
            key = (name, target, values["numbers"]["NUM_CLASSES"] > 0, blocks.columns(report["head_dim"]))
            worst[key] = _worse(worst.get(key), report)
    if options.write:
        _write(worst)
    return int(failed > 0)


def cases(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of a kernel, and the arguments and description of one call of it; each different specialisation once."""
    seen = set()
    sizes = ((64, 197), (32, 50)) if quick else tuple(product((32, 64, 80, 128), (50, 197)))
    for (head_dim, length), dtype in product(sizes, (torch.bfloat16,) if quick else (torch.bfloat16, torch.float16)):
        few = 2 if quick else 3 if dtype == torch.float16 else None
        for weighting, needs in _members(length)[:few]:
            case = {"head_dim": head_dim, "length": length, "dtype": _ELEMENTS[dtype], "member": weighting.describe()}
            for name, tensors, numbers in _calls(head_dim, length, dtype, weighting, needs):
                key = (name, dtype, str(_constants(name, tensors, numbers)))
                if key not in seen:
                    seen.add(key)
                    yield name, {"tensors": tensors, "numbers": numbers, "case": case}


def compiled(name: str, tensors: dict[str, Tensor], numbers: dict[str, Any], target: str) -> dict[str, Any]:
    """What the compiler makes of one kernel: registers a thread, bytes spilled, shared memory, matrix instructions."""
    block = triton_launch.block_of(name, numbers, target)
    own, _ = triton_launch.sized(name, tensors, numbers, block)
    kernel = triton_launch.KERNELS[name]
    signature, constants, attributes = {}, {}, {}
    for place, (argument, value) in enumerate(own.items()):
        signature[argument] = _type(argument, value)
        if signature[argument] == "constexpr":
            constants[(place,)] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % _ALIGNED == 0):
            attributes[(place,)] = [["tt.divisibility", _ALIGNED]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": block.warps, "num_stages": block.stages}
    made = triton.compile(source, target=GPUTarget("cuda", TARGETS[target], 32), options=options)
    return {**block._asdict(), "shared": made.metadata.shared, **_registers(made.asm["ptx"], target),
            "wgmma": len(re.findall(r"wgmma\.mma_async", made.asm["ptx"])),
            "mma": len(re.findall(r"mma\.sync", made.asm["ptx"]))}  # fmt: skip


def faults(report: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    wrong = [f"{report['spilled']} bytes spilled"] if report["spilled"] else []
    if report["target"] == "sm_90a" and report["queries"] >= 64 and report["keys"] >= 64 and not report["wgmma"]:
        wrong.append("no wgmma")
    if report["shared"] > 101_376:  # what one program may have on the smaller of the GPUs of compute capability 8
        wrong.append(f"{report['shared']} bytes of shared memory")
    return wrong


def _members(length: int) -> list[tuple[Weighting, triton_launch.Needs]]:
    """Weightings with tensors that have a shape and a type but no values, and the gradients asked of them."""
    alpha, table, bias = _empty(torch.float32), _empty(torch.float32, 3, 3), _empty(torch.float32, length)
    ends: dict[str, Any] = {"key_lengths": _empty(torch.int32, 2), "query_lengths": _empty(torch.int32, 2)}
    ids: dict[str, Any] = {"query_classes": _empty(torch.int8, 2, length), "key_classes": _empty(torch.int8, 2, length)}
    none, tables = triton_launch.Needs(), triton_launch.Needs(tables=True)
    every = Weighting(alpha, False, 0, **ends, key_bias=bias, **ids, before=table, after=table, see_self=True)
    return [
        (Weighting(alpha=alpha), none),
        (Weighting(before=table, see_self=True, **ids), none),
        (Weighting(), none),
        (Weighting(alpha=alpha), triton_launch.Needs(alpha=True)),
        (Weighting(causal=True), none),
        (Weighting(**ends), none),
        (Weighting(key_bias=bias), triton_launch.Needs(key_bias=True)),
        (Weighting(before=table, **ids), tables),
        (Weighting(after=table, **ids), tables),
        (every, triton_launch.Needs(alpha=True, tables=True, key_bias=True)),
    ]


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _calls(
    head_dim: int, length: int, dtype: torch.dtype, weighting: Weighting, needs: triton_launch.Needs
) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Any]]]:
    """The kernels of one forward and backward of a packed projection (2, length, 3, 12, head_dim), and their
    arguments."""
    qkv = torch.empty(2, length, 3, 12, head_dim, dtype=dtype, device="meta")
    tensors, fixed = triton_launch.forward_call([qkv], length, weighting)
    yield "forward", tensors, fixed.numbers
    out, lse = tensors["out"], tensors["lse"]
    _, tensors, fixed = triton_launch.backward_call(out, out, lse, [qkv], length, weighting, needs)
    for name in triton_launch.backward_kernels(length, length):
        yield name, tensors, fixed.numbers


def _constants(name: str, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    block = triton_launch.block_of(name, numbers, blocks.ARCHES[0])
    own, _ = triton_launch.sized(name, tensors, numbers, block)
    fixed = {argument: value for argument, value in own.items() if _type(argument, value) == "constexpr"}
    return {**fixed, "block": block}


def _type(argument: str, value: Any) -> str:
    """The compiler's name for an argument's type; a constant where it is absent or spelled in capitals."""
    if value is None or argument.isupper():
        return "constexpr"
    if isinstance(value, Tensor):
        return "*" + _ELEMENTS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _registers(ptx: str, target: str) -> dict[str, int]:
    """What the assembler reports of a kernel's registers and spills."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={target}", str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", said))
    return {"registers": max(map(int, re.findall(r"Used (\d+) registers", said))), "spilled": spilled}


def _worse(known: dict[str, int] | None, report: dict[str, Any]) -> dict[str, int]:
    """The most registers, spills and shared memory over the members of a kernel, and the fewest wgmma."""
    now = {name: int(report[name]) for name in ("registers", "spilled", "shared")}
    return now if known is None else {name: max(value, known[name]) for name, value in now.items()}


def _write(worst: dict[tuple[str, str, bool, int], dict[str, int]]) -> None:
    found = json.loads(blocks.PATH.read_text())
    for row in found["kernels"]:
        key = (row["kernel"], row["arch"], row["tables"], row["head_dim"])
        row["compiled"] = worst.get(key, row.get("compiled"))
    blocks.write(found["kernels"], found["measured"])


if __name__ == "__main__":
    sys.exit(main())
