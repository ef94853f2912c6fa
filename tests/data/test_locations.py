"""Where shards may be: what is allowed is found in order, everything else is refused before any library sees it."""

import pytest

from pretrain.data.locations import expand
from pretrain.data.shards import open_shards
from pretrain.errors import ConfigError


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("b-1.tar", "b-0.tar", "b-2.tar", "c.tar", "[odd].tar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "shards"),
    [
        ("b-0.tar", ["b-0.tar"]),
        ("b-*.tar", ["b-0.tar", "b-1.tar", "b-2.tar"]),
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("c.tar, b-{2,0}.tar", ["c.tar", "b-2.tar", "b-0.tar"]),
        ("file:c.tar", ["c.tar"]),
        ("[odd].tar", ["[odd].tar"]),
        ("./{b-?,c}.tar", ["./b-0.tar", "./b-1.tar", "./b-2.tar", "./c.tar"]),
        ("https://host/a-{0..1}.tar", ["https://host/a-0.tar", "https://host/a-1.tar"]),
        ("HTTPS://host/a.tar", ["https://host/a.tar"]),
    ],
)
def test_paths_globs_braces_and_lists_name_shards_in_order(here, pattern, shards):
    assert expand(pattern) == shards


def test_a_folder_means_its_tars(here):
    assert len(expand(str(here))) == 5


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch {canary}", "PIPE:touch {canary}", " pipe:touch {canary}", "a.tar::pipe:touch {canary}",
        "a.tar,pipe:touch {canary}", "{{a.tar,pipe:touch {canary}}}", "|touch {canary}", "${{HOME}}/a.tar",
        "exec:touch {canary}", "s3://bucket/a.tar", "gs://bucket/a.tar", "http://host/a.tar", "ftp://host/a.tar",
        "hf://a/b.tar", "https://user:secret@host/a.tar", "https:///a.tar", "https://host/*.tar", "ais://b/a.tar",
    ],
)  # fmt: skip
def test_what_could_run_a_program_or_leave_this_machine_is_refused(here, pattern):
    canary = here / "canary"
    with pytest.raises(ConfigError) as caught:
        open_shards(pattern.format(canary=canary))
    assert not canary.exists()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["", "nothing-*.tar", "a-{0..2.tar", "b-*.tar,b-0.tar", ",", "c.tar,"])
def test_patterns_that_cannot_be_meant_are_refused(here, pattern):
    with pytest.raises(ConfigError):
        expand(pattern)
