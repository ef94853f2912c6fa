"""The kernels on a GPU: errors against fp64, against those of torch's own attention, and the same bits twice"""

import pytest
import torch

from masking.attention.op import attention, forced, self_attention
from masking.attention.reference import weighted_attention_reference
from masking.attention.weighting import Weighting
from tests.masking.attention_cases import error, members, projections, run

pytestmark = pytest.mark.gpu

NAMES = list(members(1, 7, 7))
BOUNDS = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
SMALL = {torch.float16: 2e-2, torch.bfloat16: 1e-1}  # sums that cancel: alpha, tables, the key bias


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("width", [32, 64, 80, 128])
@pytest.mark.parametrize("name", NAMES)
def test_error_against_fp64(name, width, dtype):
    for queries, keys in ((1, 1), (16, 16), (49, 50), (50, 50), (65, 65), (129, 129), (197, 197), (257, 257), (9, 257)):
        parts, fields = projections(2, 3, queries, keys, width, dtype), members(2, queries, keys)[name]
        want = run(weighted_attention_reference, parts, fields, torch.float64)
        with forced("triton"):
            got = run(attention, parts, fields, dtype, "cuda")
        for key, true in want.items():
            if true.norm() > 1e-9:
                assert error(got[key], true) <= (SMALL if key.startswith("d ") else BOUNDS)[dtype], (queries, keys, key)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", [name for name in NAMES if not Weighting(**members(1, 7, 7)[name]).is_gated()])
def test_error_is_at_most_one_and_a_half_times_that_of_torchs_attention(name, width):
    parts, fields = projections(4, 6, 197, 197, width, torch.bfloat16), members(4, 197, 197)[name]
    want = run(weighted_attention_reference, parts, fields, torch.float64)
    found = {}
    for branch in ("triton", "sdpa"):
        with forced(branch):
            found[branch] = run(attention, parts, fields, torch.bfloat16, "cuda")
    for key in ("out", "d0", "d1", "d2"):
        assert error(found["triton"][key], want[key]) <= 1.5 * error(found["sdpa"][key], want[key]), key


@pytest.mark.parametrize("length", [50, 197])
def test_two_runs_give_the_same_bits(length):
    parts, fields = projections(8, 12, length, length, 64, torch.bfloat16), members(8, length, length)["everything"]
    with forced("triton"):
        one, two = (run(attention, parts, fields, torch.bfloat16, "cuda") for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_soft_mask_compiles_whole_and_can_be_captured_with_alpha_changing_under_it():
    qkv = torch.randn(4, 197, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    alpha = torch.ones((), device="cuda")
    compiled = torch.compile(lambda x, a: self_attention(x, None, Weighting(alpha=a)), fullgraph=True)
    assert torch.equal(compiled(qkv, alpha), self_attention(qkv, None, Weighting(alpha=alpha)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = self_attention(qkv, None, Weighting(alpha=alpha))
    for value in (0.0, 0.37):
        alpha.fill_(value)
        graph.replay()
        assert torch.equal(captured, self_attention(qkv, None, Weighting(alpha=alpha)))
