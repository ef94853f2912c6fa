"""Imports go down only, and each heavy package has one door: read off the syntax trees, so lazy imports count too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.syntax import PACKAGES, ROOT, Source, imports, read, sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# From the bottom up. A module belongs to the longest prefix that fits it and sees its own component or lower layers.
# Components of one layer do not see each other. What fits nothing below `pretrain` is part of the training loop.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"masking"}),
    frozenset({
        "pretrain.errors", "pretrain.strict_json", "pretrain.data.settings", "pretrain.engine.settings",
        "pretrain.tracking.settings", "pretrain.tracking.access", "pretrain.evaluation.settings",
    }),
    frozenset({
        "pretrain.types", "pretrain.patches", "pretrain.ranges", "pretrain.timm_shim", "pretrain.config_json",
        "pretrain.engine.fsops", "pretrain.weights_file",
    }),
    frozenset({"pretrain.engine.commit", "pretrain.engine.stored", "pretrain.engine.trust"}),
    frozenset({"pretrain.sparse"}),  # what a sparse run's tensors stand for
    frozenset({"pretrain.engine.published"}),  # what a finished run left: a teacher may be one
    frozenset({"pretrain.backbones", "pretrain.data.rand_augment"}),
    frozenset({"pretrain.tokenizers"}),
    frozenset({"pretrain.objectives"}),
    frozenset({"pretrain.config"}),
    frozenset({"pretrain.init"}),  # weights to begin with; checks asks whether they are there
    frozenset({"pretrain.config_help", "pretrain.checks", "pretrain.model", "pretrain.flops", "pretrain.guidance",
               "pretrain.mixing"}),
    frozenset({"pretrain.data", "pretrain.engine", "pretrain.tracking"}),
    frozenset({"pretrain.step"}),
    frozenset({"pretrain.evaluation", "pretrain.export"}),
    frozenset({"pretrain.generate"}),  # judges what it made by features of evaluation
    frozenset({"pretrain"}),  # train.py and the parts of its loop
    frozenset({"configs", "launch", "slurm"}),
)
UPWARD = {
    "pretrain.__main__ -> launch": "the console script: it enters above the check for a foreign `launch`",
}
# Where a package may be imported, as a pattern of the file's path.
DOORS = {
    "deepspeed": r"pretrain/engine/",
    "wandb": r"pretrain/tracking/",
    "triton": r"masking/attention/triton_\w+\.py$",
    "timm": r"pretrain/timm_shim\.py$",
    "torchvision": r"pretrain/timm_shim\.py$",
    "pretrain.timm_shim":
        r"(pretrain/data/rand_augment\.py|pretrain/evaluation/|pretrain/generate/inception\.py|pretrain/export/|"
        r"pretrain/objectives/teacher_files\.py|pretrain/init/foreign\.py|launch/doctor\.py)",
}
MASKING_MAY_IMPORT = {"torch", "einops", "numpy", "masking"}
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn",
                 "huggingface_hub": "huggingface-hub"}  # fmt: skip


def _layer(module: str) -> tuple[int, str]:
    """Height of a module's layer, and the component it belongs to."""
    fits = [
        (len(prefix), height, prefix)
        for height, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    _, height, prefix = max(fits)
    return height, prefix


def _upward(source: Source) -> list[str]:
    height, component = _layer(source.module)
    found = []
    for imported in imports(source):
        if imported.name.partition(".")[0] not in PACKAGES:
            continue
        other_height, other = _layer(imported.name)
        is_listed = f"{source.module} -> {other}" in UPWARD
        if other != component and other_height >= height and not is_listed:
            found.append(f"{source.path}:{imported.line} imports {imported.name}; {component} may not see {other}")
    return found


def _through_other_doors(source: Source) -> list[str]:
    return [
        f"{source.path}:{imported.line} imports {imported.name}; {package} is imported in {pattern} alone"
        for imported in imports(source)
        for package, pattern in DOORS.items()
        if (imported.name == package or imported.name.startswith(f"{package}.")) and not re.match(pattern, source.path)
    ]


def test_imports_go_down_only() -> None:
    assert [problem for source in sources(*PACKAGES) for problem in _upward(source)] == []


def test_each_heavy_package_has_one_door() -> None:
    assert [problem for source in sources(*PACKAGES) for problem in _through_other_doors(source)] == []


def test_masking_stands_on_torch_and_einops_alone() -> None:
    allowed = MASKING_MAY_IMPORT | set(sys.stdlib_module_names)
    extra = {"masking/rng.py": {"numpy"}}  # the array form of the keyed hash orders a dataset without a tensor
    for source in sources("masking"):
        here = allowed | extra.get(source.path, set())
        here |= {"triton"} if re.match(DOORS["triton"], source.path) else set()
        assert {imported.name.partition(".")[0] for imported in imports(source)} <= here, source.path


def test_nobody_imports_launch_or_a_config() -> None:
    for source in sources(*PACKAGES):
        for imported in imports(source):
            top = imported.name.partition(".")[0]
            if top in {"launch", "configs"} and not source.path.startswith(f"{top}/"):
                assert f"{source.module} -> {top}" in UPWARD, f"{source.path}:{imported.line} imports {imported.name}"


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {re.split(r"[<>=!~; \[]", line)[0].lower()
                for line in [*project["dependencies"], *extras["gpu"], *extras["demo"]]}
    for source in sources(*PACKAGES):
        for imported in imports(source):
            top = imported.name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in PACKAGES:
                assert DISTRIBUTIONS.get(top, top) in declared, f"{source.path}:{imported.line} imports {imported.name}"


def test_every_dependency_is_imported_somewhere() -> None:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {re.split(r"[<>=!~; \[]", line)[0].lower() for line in lines}
    used = {imported.name.partition(".")[0] for source in sources(*PACKAGES) for imported in imports(source)}
    assert declared - {DISTRIBUTIONS.get(name, name) for name in used} == set()


def test_settings_of_a_component_know_nobody_else() -> None:
    for source in sources("pretrain"):
        if source.path.endswith("/settings.py"):
            ours = [imported.name for imported in imports(source) if imported.name.partition(".")[0] in PACKAGES]
            assert ours == [], source.path


@pytest.mark.parametrize(
    ("module", "too_early"),
    [
        ("launch.cli", {"torch", "deepspeed", "wandb", "timm", "torchvision", "webdataset"}),
        ("pretrain.checks", {"deepspeed", "wandb", "timm", "torchvision", "webdataset"}),
        ("pretrain.train", {"wandb", "timm", "torchvision", "skimage", "sklearn"}),
    ],
)
def test_what_a_command_does_not_need_is_not_loaded(module: str, too_early: set[str]) -> None:
    script = f"import {module}, sys; print('loaded', *sorted({too_early!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "loaded"  # DeepSpeed may have said something before


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("masking/mask.py", "def f():\n    from pretrain import types", "masking may not see pretrain"),
        ("pretrain/data/loader.py", "from ..engine import engine", "pretrain.data may not see pretrain.engine"),
        ("pretrain/step.py", "import launch.cli", "pretrain.step may not see launch"),
        ("pretrain/backbones/vit.py", "import importlib\nimportlib.import_module('timm')", "timm is imported in"),
        ("pretrain/data/loader.py", "import deepspeed.comm as c", "deepspeed is imported in"),
    ],
)
def test_the_walk_sees_lazy_relative_and_dynamic_imports(tmp_path: Path, path: str, text: str, says: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    source = read(file, tmp_path)
    assert any(says in problem for problem in _upward(source) + _through_other_doors(source))
