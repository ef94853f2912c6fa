"""The contract with DeepSpeed's internals: where each stage keeps what is ours. An upgrade that moves it fails here."""

from itertools import product

from tests.zygote import shared

STAGES = (0, 1, 2, 3)
COMBOS = [[s, p, {"accumulation": 1}] for s, p in product(STAGES, ("fp32", "bf16"))]
COMBOS += [[s, "bf16", {"accumulation": 2}] for s in STAGES]
KINDS = {(0, "fp32"): "plain", (0, "bf16"): "copied", (3, "fp32"): "sharded", (3, "bf16"): "sharded"}


def test_at_every_stage_the_ranks_own_every_value_once_and_decay_only_what_should_decay(tmp_path):
    kwargs = {"run_dir": str(tmp_path), "combos": COMBOS}
    for world in (1, 3):
        ranks = [outcome.value for outcome in shared().run("tests/engine/cases.py:layouts", world, kwargs)]
        for stage, precision, settings in COMBOS:
            entries = [rank[f"{stage} {precision} {settings['accumulation']}"] for rank in ranks]
            assert entries[0]["kind"] == KINDS.get((stage, precision), "partitioned")
            shapes, covered = {}, {}
            for name, start, numel, shape in (row for entry in entries for row in entry["owned"]):
                shapes[name] = shape
                covered.setdefault(name, []).extend(range(start, start + numel))
            assert set(shapes) == {
                "backbone.cls_token", "backbone.norm.weight", "backbone.norm.bias", "backbone.fc1.weight",
                "backbone.fc1.bias", "backbone.fc2.weight", "backbone.fc2.bias", "head.weight", "head.bias",
            }  # fmt: skip
            for name, shape in shapes.items():
                count = 1
                for length in shape:
                    count *= length
                assert sorted(covered[name]) == list(range(count)), (stage, precision, name)
            for name, decay in (item for entry in entries for item in entry["decay"].items()):
                assert decay == (0.1 if name.endswith("weight") and "norm" not in name else 0.0), (stage, name)
