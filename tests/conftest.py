"""What every test stands on: one thread, no network, no trace of the launcher that may have started pytest."""

import os
import sys

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # two cores are shared by the ranks and workers that tests start; sums keep one order
for _name in list(os.environ):
    if _name.startswith(("SLURM_", "TORCHELASTIC_", "PMI", "OMPI_")) or _name in {
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    }:
        del os.environ[_name]
os.environ.pop("WANDB_API_KEY", None)  # a test must never write to anybody's account
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from masking import planes

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch and DeepSpeed do when they like
settings.register_profile("lacuna", deadline=None, derandomize=True, database=None)
settings.load_profile("lacuna")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--at-once", action="store_true", help="print failures when they happen, not after the last test")


class _AtOnce:
    """A run that somebody's clock may end has then said what it knew."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"\nFAILED {report.nodeid}\n{report.longreprtext}", file=sys.__stdout__, flush=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--at-once"):
        config.pluginmanager.register(_AtOnce())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    too_slow = pytest.mark.skip(reason="needs minutes: run it with pytest --slow (make test-slow)")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(too_slow)


@pytest.fixture(scope="session", autouse=True)
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Planes of noise are kept here while tests run, and not in the home of whoever runs them."""
    folder = tmp_path_factory.mktemp("noise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes, "cache_folder", lambda: folder)
        yield
