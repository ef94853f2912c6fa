import subprocess
import sys

import pytest
import torch

from pretrain import timm_shim
from pretrain.errors import ConfigError


def _run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_builds_a_model_in_a_fresh_process_after_a_failed_import():
    out = _run("""
try:
    import timm
except (RuntimeError, ImportError):
    pass
from pretrain.timm_shim import import_timm
timm = import_timm()
model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
from torchvision.transforms import v2
print(type(model).__name__)
""")
    assert out.strip().endswith("VisionTransformer")


def test_importing_the_shim_imports_neither_timm_nor_torchvision():
    heavy = "('timm', 'torchvision', 'wandb')"
    out = _run(f"import sys, pretrain.timm_shim; print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


def test_a_torchvision_that_imports_is_left_alone():
    _run("""
import sys, types
sys.modules['torchvision'] = fits = types.ModuleType('torchvision')
from pretrain import timm_shim
assert timm_shim.ensure_torchvision() is fits
assert timm_shim._declared == []
""")


def test_a_missing_torchvision_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(timm_shim.importlib, "import_module", _raise(ModuleNotFoundError(name="torchvision")))
    with pytest.raises(ConfigError, match="pip install"):
        timm_shim.ensure_torchvision()


def test_a_missing_timm_is_refused_with_the_command_that_installs_it(monkeypatch):
    timm_shim.ensure_torchvision()
    real = timm_shim.importlib.import_module
    monkeypatch.setattr(timm_shim.importlib, "import_module",
                        lambda name: real(name) if name != "timm" else _raise(ModuleNotFoundError(name="timm"))(name))
    with pytest.raises(ConfigError, match="pip install"):
        timm_shim.import_timm()


def test_a_cuda_build_with_a_foreign_torchvision_is_refused_not_patched(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    broken = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(timm_shim.importlib, "import_module", _raise(broken))
    declared = list(timm_shim._declared)
    with pytest.raises(ConfigError, match="does not fit torch"):
        timm_shim.ensure_torchvision()
    assert timm_shim._declared == declared


def test_another_error_of_torchvision_is_passed_on_as_it_is(monkeypatch):
    monkeypatch.setattr(timm_shim.importlib, "import_module", _raise(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        timm_shim.ensure_torchvision()


def _raise(error):
    def import_module(name):
        raise error

    return import_module
