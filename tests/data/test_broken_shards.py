"""Nothing is lost or wrong without a word, whatever breaks a shard: the benchmark's cases, fewer of them."""

from collections import Counter

import pytest

from benchmarks.broken_shards import campaign, cases, webdataset_counts


def test_60_broken_shards_lose_nothing_in_silence():
    total = campaign(60)
    assert total["failures"] == []
    assert total["right"] > 500
    assert total["reported"] > 10
    assert total["refused_shards"] > 20


@pytest.mark.slow
def test_300_broken_shards_lose_nothing_in_silence():
    assert campaign(300)["failures"] == []


@pytest.mark.slow
def test_plain_webdataset_does_lose_samples_in_silence(tmp_path):
    """Why all this is there: were this to fail, webdataset would have become strict."""
    assert sum((webdataset_counts(case, tmp_path) for case in cases(20)), Counter())["webdataset_silent_cases"] > 5
