"""Every key of every shipped config, changed in every way: taken, or refused in words that help (goal G14)."""

from __future__ import annotations

import pytest

from tests.bad_configs import Case, bad_config_campaign, command_campaign, fault_of, is_legal


def test_330_mutations_of_every_shipped_config_are_refused_in_words_that_help_or_are_legal() -> None:
    found = bad_config_campaign(330)
    assert found["failures"] == []
    assert found["refused"] > 200 and found["legal_and_taken"] > 10


@pytest.mark.slow
def test_every_mutation_of_every_key_is_refused_in_words_that_help_or_is_legal() -> None:
    assert bad_config_campaign(100_000)["failures"] == []


@pytest.mark.slow
def test_bad_settings_given_to_the_command_end_with_78_before_deepspeed_is_imported() -> None:
    assert command_campaign(2)["failures"] == []


def test_an_answer_that_helps_nobody_is_a_fault() -> None:
    case = Case("tiny_cpu", "override", "data.batch_size", "-1")
    for said in (None, "CRASH KeyError: 'x'", "it must be 1 or more", "data.batch_size is wrong"):
        assert fault_of(case, said, legal=False)
    assert fault_of(case, "data.batch_size=-1; it must be 1 or more", legal=False) is None
    assert not is_legal(case) and is_legal(Case("tiny_cpu", "override", "data.workers", "0"))
