"""Files of weights from strangers: tensors or a refusal in one sentence, whatever they hold and whatever they claim."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.objectives.teacher_files import open_teacher
from pretrain.timm_shim import import_timm
from pretrain.weights_file import read_state
from tests.security import payloads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one opens the canary for good
def test_the_pickles_do_run_in_the_hands_they_are_made_for(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name, content in payloads.pickles(canary).items():
        pickle.loads(content)
        assert canary.exists(), name
        canary.unlink()
    for name in ("new.pth", "old.pth", "system, archive"):
        torch.load(payloads.weights(tmp_path / "weights", canary)[name], weights_only=False)
        assert canary.exists(), name
        canary.unlink()


def test_no_file_of_weights_runs_or_is_taken_for_what_it_claims(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = payloads.weights(tmp_path / "weights", canary)
    assert len(files) > 40
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
    before = _peak_kib()
    for name, path in files.items():
        with pytest.raises(ConfigError) as caught:
            read_state(path)
        assert str(path) in str(caught.value), name
        assert not canary.exists(), name
    assert _peak_kib() - before < 256 << 10, "the bomb alone unpacks to 64 MiB, the others claim far more"


@pytest.mark.parametrize("suffix", ["pt", "old.pt", "safetensors"])
def test_what_torch_and_safetensors_write_is_read(tmp_path: Path, suffix: str) -> None:
    path, tied = tmp_path / f"weights.{suffix}", torch.randn(3, 5)
    state: dict[str, Any] = {"weight": tied, "half": torch.randn(2).half()}
    if suffix == "safetensors":
        save_file(state, path)
    else:
        state |= {"tied": tied, "ema": {"weight": tied, "row": tied[1]}, "epoch": 7, "name": "x"}
        torch.save(state, path, _use_new_zipfile_serialization=suffix == "pt")
    found = read_state(path)
    assert found.keys() == state.keys() and torch.equal(found["weight"], tied) and found["half"].dtype == torch.float16


def test_three_hundred_mutated_pickles_and_every_payload_execute_nothing() -> None:
    counts = payloads.campaign(300)
    assert counts["pocs"] > 400 and counts["fuzzed_pickles"] == 300
    assert (counts["executed"], counts["crashed"], counts["unexpected"]) == (0, 0, 0)
    assert counts["refused"] + counts["accepted"] == counts["pocs"] + 300
    assert counts["accepted"] > 0, "what is harmless still gets through: the doors are not just shut"


@pytest.mark.slow
def test_ten_thousand_mutated_pickles_execute_nothing() -> None:
    counts = payloads.campaign(10_000)
    assert counts["fuzzed_pickles"] == 10_000
    assert (counts["executed"], counts["crashed"], counts["unexpected"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "hf-hub:evil/model"}, "the architecture 'hf-hub:evil/model'"),
        ({"architecture": "local-dir:/tmp"}, "the architecture"),
        ({"architecture": "os.system"}, "the architecture"),
        ({"architecture": ["vit_tiny_patch16_224"]}, "the architecture"),
        ({"model_args": {"pretrained": True}}, "model_args pretrained"),
        ({"model_args": {"checkpoint_path": "/evil.pth", "depth": 2}}, "model_args checkpoint_path"),
        ({"model_args": {"pretrained_cfg": {"url": "https://evil"}}}, "model_args pretrained_cfg"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "x"}, "cache_dir": "/"}}, "cache_dir, pretrained_cfg"),
        ({"model_args": {"scriptable": True}}, "model_args scriptable"),
        ({"model_args": {"norm_layer": "os.system"}}, "norm_layer"),
    ],
)  # fmt: skip
def test_a_teachers_config_names_shapes_and_never_what_would_be_fetched(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    folder = _teacher(tmp_path, settings)
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_teacher(str(folder), None, Grid(4, 4))


def test_a_teachers_folder_without_tricks_teaches(tmp_path: Path) -> None:
    assert len(open_teacher(str(_teacher(tmp_path, {})), None, Grid(4, 4)).blocks) == 2


@pytest.mark.parametrize("text", payloads.configs().values(), ids=payloads.configs().keys())
def test_a_teachers_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = _teacher(tmp_path, {})
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        open_teacher(str(folder), None, Grid(4, 4))


def _teacher(tmp_path: Path, settings: dict[str, Any]) -> Path:
    """A folder as timm publishes them, with other settings in its config.json."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    shape = {"depth": 2, "embed_dim": 48, "num_heads": 4}
    model = import_timm().create_model("vit_tiny_patch16_224", num_classes=0, **shape)
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {"architecture": "vit_tiny_patch16_224", **settings, "model_args": shape | settings.get("model_args", {})}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def _peak_kib() -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1])
