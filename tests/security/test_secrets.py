"""Secrets of the environment stay there: no file of a run, no line it prints and no command it starts has them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.environment import wandb_access
from pretrain.errors import ConfigError
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.settings import TrackingConfig
from pretrain.tracking.wandb_log import read_records
from tests import chaos
from tests.zygote import shared

TRAIN = "tests/security/test_secrets.py:train"
SECRETS = {
    "WANDB_API_KEY": "5ec7e7" * 6 + "abcd", "HF_TOKEN": "hf_5ec7e7token", "GITHUB_TOKEN": "ghp_5ec7e7token",
    "AWS_SECRET_ACCESS_KEY": "aws5ec7e7key", "AWS_SESSION_TOKEN": "aws5ec7e7session", "MY_PASSWORD": "pass5ec7e7word",
    "HTTPS_PROXY": "http://me:proxy5ec7e7@localhost:1", "SSH_AUTH_SOCK": "/run/5ec7e7.sock",
}  # fmt: skip
SIGN = b"5ec7e7"  # is in each of them


def train(_place: object, overrides: list[str], secrets: dict[str, str], home: str) -> None:
    """What a forked rank does."""
    os.environ.update(secrets | {"WANDB_MODE": "offline", "HOME": home})
    raise SystemExit(main(["train", "configs/tiny_cpu.py", *overrides]))


def test_a_run_with_secrets_around_it_writes_and_says_none_of_them(tmp_path: Path) -> None:
    pattern = chaos.make_shards(tmp_path / "shards", images=60)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 5ec7e7netrc\n")
    settings = chaos.overrides(tmp_path / "runs" / "run", pattern, steps=4, stage=1, workers=1)
    how = {"overrides": [*settings, "tracking.wandb=auto"], "secrets": SECRETS, "home": str(tmp_path)}
    (outcome,) = shared().run(TRAIN, 1, how)
    assert outcome.code == 0, outcome.output[-3000:]
    assert SIGN not in outcome.output.encode()
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written), "W&B has followed"
    assert [path for path in written if SIGN in path.read_bytes()] == []
    sent = [record for path in (tmp_path / "runs").rglob("*.wandb") for record in read_records(path)]
    run = next(record.run for record in sent if record.WhichOneof("record_type") == "run")
    keys = {item.key for item in run.config.update} - {"_wandb"}
    assert keys <= json.loads((tmp_path / "runs" / "run" / "config.json").read_text()).keys(), "the config alone"
    names = {path.name for path in written}
    assert not {name for name in names if name.endswith((".py", ".patch")) or name == "requirements.txt"}, "no code"


def test_no_command_that_a_run_starts_has_a_secret_among_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = Tracker(tmp_path, {"name": "run"}, TrackingConfig(), access=wandb_access(), warn=print)
    assert run._mirror is not None and run._mirror.pid is not None
    words, deadline = b"", time.monotonic() + 60
    while not words and time.monotonic() < deadline:  # the child has not become its program yet
        words = Path(f"/proc/{run._mirror.pid}/cmdline").read_bytes()
    run.log([{"step": 1, "loss": 1.0}])
    run.close()
    assert str(tmp_path).encode() in words and SIGN not in words


@pytest.mark.parametrize("url", ["https://user:5ec7e7@wandb.example.org", "https://5ec7e7@wandb.example.org:8080/x"])
def test_a_server_named_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="user name or password") as caught:
        wandb_access({"WANDB_BASE_URL": url})
    assert "5ec7e7" not in str(caught.value)
    assert wandb_access({"WANDB_BASE_URL": "https://wandb.example.org/@team"}).base_url.endswith("@team")
