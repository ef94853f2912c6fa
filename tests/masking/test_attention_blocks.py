"""masking/attention/blocks.py and triton_ahead.py: the shipped blocks are data, and compile as they should"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from masking.attention import blocks
from tests.syntax import ROOT

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: pip install 'lacuna[gpu]'"
)


def compile_ahead(*arguments):
    """What triton_ahead.py reports, one dictionary a kernel; it runs outside the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "masking.attention.triton_ahead", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
def test_the_kernels_of_illama_and_of_classes_compile_for_hopper_and_ampere_without_spills():
    reports = compile_ahead("--quick")
    assert {(row["kernel"], row["target"]) for row in reports} == {
        (kernel, arch) for kernel in ("forward", "query", "key", "small") for arch in blocks.ARCHES
    }
    assert all(row["spilled"] == 0 and row["wrong"] == [] for row in reports)
    assert all(row["wgmma"] > 0 for row in reports if row["target"] == "sm_90a")
    assert all(row["mma"] > 0 for row in reports if row["target"] == "sm_80")


@pytest.mark.slow
@needs_triton
def test_every_shipped_kernel_compiles_and_the_table_says_what_was_seen():
    most = {}
    for row in compile_ahead():
        key = (row["kernel"], row["target"], "classes" in row["member"], blocks.columns(row["head_dim"]))
        most[key] = max(most.get(key, 0), row["registers"])
    for row in json.loads(blocks.PATH.read_text())["kernels"]:
        key = (row["kernel"], row["arch"], row["tables"], row["head_dim"])
        assert most.pop(key) == row["compiled"]["registers"], row
    assert most == {}


@pytest.mark.parametrize("arch", blocks.ARCHES)
@pytest.mark.parametrize("tables", [False, True])
def test_every_kernel_has_blocks_for_every_head_dimension(arch, tables):
    for kernel in ("forward", "query", "key", "small"):
        for head_dim in (8, 16, 32, 64, 80, 128):
            block = blocks.pick(kernel, arch, tables, head_dim, 320, 320)
            assert {block.queries, block.keys} <= {16, 32, 64} and block.warps in (4, 8) and block.stages in (1, 2, 3)
            fitting = blocks.pick(kernel, arch, tables, head_dim, 3, 20)
            assert fitting.queries == 16 and fitting.keys <= 32
    with pytest.raises(ValueError, match="no blocks for heads of 256"):
        blocks.pick("forward", arch, tables, 256, 50, 50)


def test_what_was_seen_of_every_row_is_in_the_table():
    for row in json.loads(blocks.PATH.read_text())["kernels"]:
        assert row["compiled"]["spilled"] == 0 and row["compiled"]["registers"] <= 255, row


@pytest.mark.parametrize(
    ("size", "block", "tail"),
    [(197, 64, (False, 16)), (50, 64, (True, 0)), (64, 64, (False, 0)), (65, 64, (False, 16)), (257, 64, (False, 16)),
     (320, 64, (False, 0)), (92, 64, (False, 32)), (129, 32, (False, 16)), (17, 16, (True, 0)), (1, 16, (True, 0))],
)  # fmt: skip
def test_what_is_left_over_is_one_narrow_block_where_that_is_less_work(size, block, tail):
    assert blocks.tail(size, block) == tail


def test_a_gpu_takes_the_blocks_that_fit_its_shared_memory():
    found = [blocks.arch_of(capability) for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))]
    assert found == ["sm_80", "sm_80", "sm_90a", "sm_90a", "sm_80"]


def test_nobody_measured_a_gpu_that_does_not_exist():
    assert blocks.measured("none", "none", "plain", 64, 197, 197) is None
