from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.export.export import write_export
from pretrain.export.parity import needed
from pretrain.patches import normalize
from tests.export.cases import SMALL, encoder, images_of, sequence_of, written

ENCODERS = [ViTConfig("tiny", registers=1, **SMALL), IllamaConfig("tiny", **SMALL)]


@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_graph_of_torch_gives_the_features_of_any_number_of_images(
    tmp_path: Path, backbone: ViTConfig | IllamaConfig
) -> None:
    loaded = encoder(backbone, (32, 48))
    report = written(loaded, tmp_path, "torch-export")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    images = images_of(loaded).repeat(3, 1, 1, 1)
    ours = sequence_of(loaded, images)
    with torch.no_grad():
        theirs = graph(normalize(images, (0.4,) * 3, (0.3,) * 3))
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-5 * float(ours.abs().max()))
    assert "(pixel / 255 - mean) / std, mean 0.4" in str(report)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_onnxruntime_gives_the_features_of_any_number_of_images(
    tmp_path: Path, backbone: ViTConfig | IllamaConfig
) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'lacuna[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'lacuna[export]'")
    loaded = encoder(backbone, (32, 48))
    written(loaded, tmp_path, "onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    images = images_of(loaded).repeat(3, 1, 1, 1)
    ours = sequence_of(loaded, images)
    theirs = session.run(None, {"images": normalize(images, (0.4,) * 3, (0.3,) * 3).numpy()})[0]
    assert torch.allclose(torch.from_numpy(theirs), ours, rtol=0, atol=1e-5 * float(ours.abs().max()))


def test_a_library_that_is_not_there_is_named_with_its_cure() -> None:
    with pytest.raises(
        ConfigError, match=r"--to onnx needs onyx, which is not installed; pip install 'lacuna\[export\]'"
    ):
        needed("onyx", "onnx")


def test_a_graph_is_not_written_as_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"writes \.pt2; name a\.pt2, or a folder"):
        write_export(encoder(ENCODERS[0], (32, 32)), "torch-export", tmp_path / "a.onnx")
