"""A run stopped and started is the run never stopped; another world or stage holds exactly the same state."""

from itertools import product

import pytest

from tests.zygote import shared

CASES = "tests/engine/cases.py"
COMBOS = [[s, p, {}] for s, p in product((0, 1, 2, 3), ("fp32", "bf16"))] + [
    [s, "bf16", {"accumulation": 2}] for s in (0, 1)
]


def _train(run_dir, stop, world=2, combos=COMBOS):
    kwargs = {"run_dir": str(run_dir), "combos": combos, "stop": stop}
    ranks = [outcome.value for outcome in shared().run(f"{CASES}:train", world, kwargs)]
    assert all(rank == ranks[0] for rank in ranks)
    return ranks[0]


def test_stop_and_resume_is_bit_exact_at_every_stage(tmp_path):
    whole = _train(tmp_path / "whole", 4)
    first, second = _train(tmp_path / "parts", 2), _train(tmp_path / "parts", 4)
    for name, want in whole.items():
        assert (first[name]["start"], second[name]["start"]) == (0, 2)
        assert first[name]["losses"] + second[name]["losses"] == want["losses"], name
        for key in ("weights", "ema", "updates"):
            assert second[name][key] == want[key], (name, key)


@pytest.mark.parametrize(("before", "after", "turn"), [(2, 1, 0), (1, 2, 1), (2, 3, 2)])
def test_another_world_and_stage_holds_exactly_the_same_state(before, after, turn, tmp_path):
    combos = [[f"{s}-{p}", s, p] for s, p in product((0, 1, 2, 3), ("fp32", "bf16"))]
    turned = [[name, (stage + turn) % 4, precision] for name, stage, precision in combos]
    trained = _train(tmp_path / "run", 4, before, [[s, p, {}] for _, s, p in combos])
    sources = {name: next((tmp_path / "run" / f"{name}-1" / "ckpt").iterdir()) for name, _, _ in combos}
    (tmp_path / "source").mkdir()
    for name, path in sources.items():
        (tmp_path / "source" / name).symlink_to(path)
    kwargs = {"source": str(tmp_path / "source"), "target": str(tmp_path / "there"), "combos": turned}
    there = [outcome.value for outcome in shared().run(f"{CASES}:convert", after, kwargs)]
    back = {"source": str(tmp_path / "there"), "target": str(tmp_path / "back"), "combos": combos}
    again = [outcome.value for outcome in shared().run(f"{CASES}:convert", before, back)]
    folders = [str(tmp_path / part / name) for name, _, _ in combos for part in ("source", "there", "back")]
    digests = shared().run(f"{CASES}:digests", 1, {"directories": folders})[0].value
    for index, (name, _, precision) in enumerate(combos):
        source, changed, returned = digests[3 * index : 3 * index + 3]
        assert source["kinds"] == ["ema", "exp_avg", "exp_avg_sq", "fixed", "master"]
        assert source == changed == returned, name
        assert source["updates"] == trained[f"{name}-1"]["updates"] == 4
        for rank in (*there, *again):
            assert set(rank[name]["decay"]) == {0.0, 0.1}
            tolerance = 1e-6 if precision == "fp32" else 2e-3
            assert rank[name]["loss"] == pytest.approx(there[0][name]["loss"], rel=tolerance)


def test_refreshed_weights_are_the_rounded_masters(tmp_path):
    combos = [[f"{s}-bf16", s, "bf16"] for s in (0, 1, 2)]
    _train(tmp_path / "run", 2, 2, [[s, p, {}] for _, s, p in combos])
    (tmp_path / "source").mkdir()
    for name, _, _ in combos:
        (tmp_path / "source" / name).symlink_to(next((tmp_path / "run" / f"{name}-1" / "ckpt").iterdir()))
    kwargs = {"source": str(tmp_path / "source"), "target": str(tmp_path / "there"), "combos": combos}
    loaded = shared().run(f"{CASES}:convert", 2, kwargs)[1].value
    masters = shared().run(f"{CASES}:rounded", 1, {"directories": [str(tmp_path / "source" / n) for n, _, _ in combos]})
    for (name, _, _), want in zip(combos, masters[0].value, strict=True):
        for parameter, values in want.items():
            if parameter in loaded[name]["low"]:
                assert loaded[name]["low"][parameter] == values, (name, parameter)
