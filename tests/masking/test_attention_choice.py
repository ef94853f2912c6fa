"""The choice for GPUs in masking/attention/op.py, with the committed measurements and without a GPU"""

import json

import pytest
import torch

from benchmarks.attention_table import table, write_table
from masking.attention import blocks, op
from masking.attention.op import Shape, choose
from masking.attention.weighting import PLAIN, Weighting
from tests.syntax import ROOT

MEASURED = json.loads(blocks.PATH.read_text())["measured"]
ONE, TABLE = torch.ones(()), torch.ones(2, 2)
MEMBERS = {weighting.describe(): weighting for weighting in (
    PLAIN, Weighting(alpha=ONE), Weighting(before=TABLE), Weighting(after=TABLE), Weighting(key_lengths=ONE),
)}  # fmt: skip


@pytest.fixture(autouse=True)
def _an_h200(monkeypatch):
    on_a(monkeypatch, "NVIDIA H200", "9.0")
    monkeypatch.setattr(op, "_HAS_TRITON", True)


def on_a(monkeypatch, name, capability):
    monkeypatch.setattr(op, "_gpu", lambda: (name, capability))


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row['member']} {row['size'][0]}")
def test_no_branch_is_taken_that_was_measured_slower_than_another_that_can(row):
    weighting = MEMBERS[row["member"]]
    chosen = choose("cuda", torch.bfloat16, weighting, Shape(*row["size"]))
    able = {name: ms for name, ms in row["ms"].items() if not (name == "sdpa" and weighting.is_gated())}
    assert able[chosen.name] == min(able.values())
    assert f"{able[chosen.name]:.2f} ms" in chosen.reason and row["source"] in chosen.reason


def test_the_h200_takes_the_kernels_for_every_member_at_the_usual_size():
    assert {choose("cuda", torch.bfloat16, weighting).name for weighting in MEMBERS.values()} == {"triton"}


def test_no_choice_is_5_per_cent_slower_than_the_best_branch_of_any_committed_row():
    rows = json.loads((ROOT / "benchmarks" / "results" / "attention-gpu.json").read_text())["rows"]
    assert len(rows) > 40
    for row in rows:
        size = Shape(row["head_dim"], row["length"], row["length"])
        chosen = choose("cuda", torch.bfloat16, MEMBERS[row["describe"]], size).name
        assert row["ms"][chosen] <= 1.05 * min(row["ms"][name] for name in op.BRANCHES if name in row["ms"]), row


def test_a_table_whose_gradient_is_asked_for_is_never_given_to_an_attention_without_one():
    learned = Weighting(before=torch.ones(2, 2, requires_grad=True))
    assert choose("cuda", torch.bfloat16, learned).name == "triton"
    assert choose("cuda", torch.float32, learned).name == "matmul"


def test_a_branch_that_cannot_run_is_left_out_however_fast_it_was(monkeypatch):
    monkeypatch.setattr(op, "_HAS_TRITON", False)
    chosen = choose("cuda", torch.bfloat16, MEMBERS["soft mask"])
    assert chosen.name == "matmul" and "Triton is not installed" in chosen.reason


def test_a_gpu_of_the_same_kind_goes_by_the_measurement_and_another_does_not(monkeypatch):
    hard = MEMBERS["classes before"]
    on_a(monkeypatch, "NVIDIA H100 80GB HBM3", "9.0")
    assert "an NVIDIA H200" in choose("cuda", torch.bfloat16, hard).reason
    on_a(monkeypatch, "NVIDIA A100-SXM4-80GB", "8.0")
    assert choose("cuda", torch.bfloat16, hard).name == "triton"


@pytest.mark.parametrize(("queries", "known"), [(147, True), (197, True), (50, False), (600, False)])
def test_a_size_goes_by_the_nearest_measurement_within_a_factor_of_two(queries, known):
    reason = choose("cuda", torch.bfloat16, PLAIN, Shape(64, queries, 197)).reason
    assert ("197 queries, 197 keys" in reason) == known and ("not measured" in reason) != known


def test_the_committed_measurements_are_those_of_the_committed_result(tmp_path, monkeypatch):
    file = ROOT / "benchmarks" / "results" / "attention-gpu.json"
    result = json.loads(file.read_text())
    assert [row for row in MEASURED if row["gpu"] == result["gpu"]] == table(result, file.name)
    monkeypatch.setattr(blocks, "PATH", tmp_path / "blocks.json")
    blocks.write([], [{**MEASURED[0], "gpu": "another"}, {**MEASURED[0], "source": "an older one"}])
    write_table(result, file)
    written = json.loads(blocks.PATH.read_text())["measured"]
    assert [row["gpu"] for row in written] == ["another"] + ["NVIDIA H200"] * len(MEASURED) and written[1:] == MEASURED


def test_compiling_with_a_measured_choice_breaks_no_graph():
    def layer(x, a):
        return x * len(choose("cuda", torch.bfloat16, Weighting(alpha=a)).reason)

    explained = torch._dynamo.explain(layer)(torch.ones(3), torch.ones(()))
    assert explained.graph_break_count == 0 and "ms against" in choose("cuda", torch.bfloat16, MEMBERS["plain"]).reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of itself
def test_a_compiler_follows_the_choice_with_sizes_it_does_not_know():
    """Masks of a ratio that varies give another number of tokens in every step."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def double_where_kernels_run(x):
        length = x.shape[0]
        return 2 * x if choose("cuda", torch.bfloat16, PLAIN, Shape(64, length, length)).name == "triton" else x

    torch._dynamo.reset()
    compiled = torch.compile(double_where_kernels_run, backend=backend, fullgraph=True)
    for length in (50, 65, 64, 100, 197, 514):
        assert compiled(torch.ones(length))[0] == 2
    assert len(graphs) == 2, "one for the first size, one for all others"
    assert compiled(torch.ones(1000))[0] == 1, "no size near it was measured"


def test_a_size_between_two_measurements_takes_what_was_fastest_in_both(monkeypatch):
    fastest = {50: "triton", 80: "triton", 200: "sdpa"}
    rows = [
        {"gpu": "NVIDIA H200", "size": [64, size, size], "source": "a test",
         "ms": {name: 1.0 if name == best else 2.0 for name in ("sdpa", "triton")}}
        for size, best in fastest.items()
    ]  # fmt: skip
    monkeypatch.setattr(blocks, "_MEASURED", {("9.0", "plain", 64): rows})
    monkeypatch.setattr(op, "_known", blocks.measured)
    op._spans_on.cache_clear()
    assert op._spans("plain", ("sdpa", "triton"), 64) == ((25, 126, "triton"), (127, 400, "sdpa"))
    for length in range(20, 420, 7):
        row = blocks.measured("NVIDIA H200", "9.0", "plain", 64, length, length)
        best = "sdpa" if row is None else min(row.ms, key=row.ms.get)
        assert choose("cuda", torch.bfloat16, PLAIN, Shape(64, length, length)).name == best
    op._spans_on.cache_clear()
