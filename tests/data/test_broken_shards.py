"""Nothing is lost or wrong without a word, whatever breaks a shard: the benchmark's cases, fewer of them."""

from collections import Counter

import pytest

from benchmarks.broken_shards import cases, run_case, webdataset_counts

SILENT = ("silently_lost", "silently_wrong", "reported_without_cause")


def check(number, folder):
    total = Counter()
    for case in cases(number):
        counts = run_case(case, folder / "case")
        assert not any(counts[name] for name in SILENT), (case, counts)
        total += counts
    return total


def test_60_broken_shards_lose_nothing_in_silence(tmp_path):
    total = check(60, tmp_path)
    assert total["right"] > 500
    assert total["reported"] > 10
    assert total["refused_shards"] > 20


@pytest.mark.slow
def test_300_broken_shards_lose_nothing_in_silence(tmp_path):
    check(300, tmp_path)


def test_plain_webdataset_does_lose_samples_in_silence(tmp_path):
    """Why all this is there: were this to fail, webdataset would have become strict."""
    assert sum((webdataset_counts(case, tmp_path) for case in cases(20)), Counter())["webdataset_silent_cases"] > 5
