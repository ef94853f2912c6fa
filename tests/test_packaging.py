"""What is installed: the wheel's files and its command, the pins, and what happens beside other people's packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.syntax import PACKAGES, ROOT, sources


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked folders so that the build leaves nothing in the checkout."""
    home = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, home / name)
    for name in (*PACKAGES, "tests", "benchmarks", "docs"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = "-m pip wheel . --no-deps --no-build-isolation --no-index -w out"
    built = subprocess.run([sys.executable, *command.split()], cwd=home, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = (home / "out").glob("lacuna-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's packages, as site-packages would."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_module_and_config_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {source.path for source in sources(*PACKAGES)} <= files
    assert {name.split("/")[0] for name in files} == set(PACKAGES)
    assert {"masking/py.typed", "pretrain/py.typed", "launch/py.typed"} <= files


def test_the_wheel_carries_the_licence_and_one_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        meta = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        assert "Apache License" in archive.read(f"{meta}/licenses/LICENSE").decode()
        scripts = ConfigParser()
        scripts.read_string(archive.read(f"{meta}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"lacuna": "pretrain.__main__:main"}


@pytest.mark.parametrize("entry", [["-m", "launch"], ["-m", "launch.cli"], ["-m", "pretrain"]])
def test_the_command_answers_outside_the_checkout(installed: Path, tmp_path: Path, entry: list[str]) -> None:
    done = _python([*entry, "--help"], [installed], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    assert "usage: lacuna" in done.stdout


@pytest.mark.parametrize("package", ["masking", "launch"])
def test_a_foreign_package_earlier_on_the_path_is_refused_by_its_file(
    installed: Path, tmp_path: Path, package: str
) -> None:
    foreign = tmp_path / "ros" / package / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("raise SystemExit('must not run')\n")
    done = _python(["-c", "import pretrain"], [tmp_path / "ros", installed], cwd=tmp_path)
    assert done.returncode == 1
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith(f"ImportError: `{package}` is {foreign}")
    assert str(installed / package / "__init__.py") in sentence
    assert "PYTHONPATH" in sentence


def test_the_console_script_names_a_foreign_launch_too(installed: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "ros" / "launch" / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    script = "import sys; from pretrain.__main__ import main; sys.exit(main())"  # what pip writes into bin/lacuna
    done = _python(["-c", script], [tmp_path / "ros", installed], cwd=tmp_path)
    assert done.returncode == 1
    assert str(foreign) in done.stderr.strip().splitlines()[-1]


def test_a_missing_package_is_named(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed / "pretrain", tmp_path / "half" / "pretrain")
    done = _python(["-S", "-c", "import pretrain"], [tmp_path / "half"], cwd=tmp_path)  # -S: not the checkout's own
    assert done.returncode == 1
    assert "`masking` should be" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("entry", [["-m", "launch.cli", "--help"], ["-c", "import pretrain"]])
def test_bare_folders_of_the_same_names_do_no_harm(installed: Path, tmp_path: Path, entry: list[str]) -> None:
    for name in PACKAGES:  # no __init__.py: a user's own folder of slurm logs or configs
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    done = _python(entry, [installed], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_link_to_the_packages_is_not_foreign(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(installed)
    done = _python(["-c", "import pretrain, masking"], [tmp_path / "link", installed], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_pretrain_loads_no_heavy_package(installed: Path, tmp_path: Path) -> None:
    done = _python(["-c", "import pretrain, sys; print('torch' in sys.modules)"], [installed], cwd=tmp_path)
    assert done.stdout.strip() == "False"


def test_constraints_pin_every_dependency_exactly_and_without_hashes() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pin = re.compile(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+(; python_version (<|>=) \"3\.\d+\")?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    pinned = {re.sub(r"[_.]", "-", line.split("==")[0].lower()) for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r"^\s+\"([A-Za-z0-9_.-]+)(?=[<>=])", project, re.MULTILINE)
    wanted += re.findall(r"\"([a-z0-9-]+)>=", "".join(re.findall(r"^(?:gpu|demo|test) = .*$", project, re.MULTILINE)))
    assert wanted
    assert {name.lower() for name in wanted} <= pinned


def _python(arguments: list[str], path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
