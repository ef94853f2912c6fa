"""Settings and flags in any order, for every verb that takes settings."""

from __future__ import annotations

import pytest

from launch.cli import _parser, main

CONFIG = "configs/finetune_cifar.py"


@pytest.mark.parametrize(
    ("verb", "flag", "is_set"),
    [
        ("train", ["--fresh"], "fresh"),
        ("finetune", ["--from-scratch"], "from_scratch"),
        ("submit", ["--nodes", "2"], "nodes"),
        ("submit", ["--sweep", "seed=3,4"], "sweep"),
        ("config", ["--json"], "json"),
    ],
)
def test_a_flag_stands_anywhere_and_settings_keep_their_order(verb: str, flag: list[str], is_set: str) -> None:
    settings = ["name=a", "seed=1", "seed=2"]
    words = [CONFIG, *settings]
    found = [_parser().parse_args([verb, *words[:place], *flag, *words[place:]]) for place in range(len(words) + 1)]
    assert all((options.config, options.overrides) == (CONFIG, settings) for options in found)
    assert all(getattr(options, is_set) == getattr(found[0], is_set) for options in found)
    assert getattr(found[0], is_set) != getattr(_parser().parse_args([verb, *words]), is_set)


def test_settings_may_stand_on_both_sides_of_several_flags() -> None:
    options = _parser().parse_args(
        ["finetune", "--trust", CONFIG, "seed=1", "--fresh", "name=a", "--allow-change", "b=2"]
    )
    assert options.overrides == ["seed=1", "name=a", "b=2"]
    assert options.trust and options.fresh and options.allow_change and not options.from_scratch


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["finetune", CONFIG, "--from-scrach", "name=a"], "--from-scrach"),
        (["submit", CONFIG, "name=a", "-x", "seed=1"], "-x"),
        (["evaluate", "runs/first", "--all-images", "name=a"], "name=a"),
        (["doctor", "name=a"], "name=a"),
    ],
)
def test_a_word_that_means_nothing_is_refused_alone(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {named}\n")


def test_a_stray_word_among_settings_is_refused_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", CONFIG, "--json", "fresh"]) == 78
    assert "override 'fresh' has no '='" in capsys.readouterr().err
