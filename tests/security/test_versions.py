"""What is installed is at least what we ask for, and what we ask for is past the holes that our files could reach."""

from __future__ import annotations

import re
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.syntax import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
PAST = {  # package -> the first release without the hole, and the hole
    "torch": ("2.10", "weights_only=True could run code (CVE-2025-32434) or corrupt memory (CVE-2026-24747)"),
    "pillow": ("10.0.1", "WEBP could overflow the heap (CVE-2023-4863)"),
    "deepspeed": ("0.19", "CVE-2024-43497, code run by a crafted input, is of releases long before"),
}


@pytest.mark.parametrize("asked", [line for line in DEPENDENCIES if not line.marker or line.marker.evaluate()], ids=str)
def test_what_is_installed_is_what_is_asked_for(asked: Requirement) -> None:
    assert asked.specifier.contains(metadata.version(asked.name), prereleases=True)


@pytest.mark.parametrize("name", PAST)
def test_the_least_release_asked_for_is_past_the_holes_that_a_file_could_reach(name: str) -> None:
    asked = next(line for line in DEPENDENCIES if line.name == name)
    least = [Version(part.version) for part in asked.specifier if part.operator in (">=", "==", "~=")]
    assert least and max(least) >= Version(PAST[name][0]), PAST[name][1]


def test_every_package_of_an_install_is_pinned_to_one_release_that_fits() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned: dict[str, list[Requirement]] = {}
    for line in lines:
        requirement = Requirement(line)
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), line
        assert requirement.url is None, line
        pinned.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for asked in DEPENDENCIES:
        for pin in pinned[canonicalize_name(asked.name)]:
            assert asked.specifier.contains(next(iter(pin.specifier)).version), (str(asked), str(pin))


def test_an_install_takes_every_package_through_the_pins() -> None:
    recipe = (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip install[^\n]*", recipe)
    assert installs and all("-c constraints.txt" in line for line in installs)
    assert not re.search(r"extra-index-url|trusted-host|git\+|http://", recipe)
