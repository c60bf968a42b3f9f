"""One torch thread a process, no network, a cache of its own for every test; in `make test-all` a skip is a failure."""

import os
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import hypothesis
import pytest

hypothesis.settings.register_profile("pluralign", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("pluralign")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache of its own: none reads or fills the user's."""
    monkeypatch.setenv("PLURALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of figures computed with other people's code."""
    return GOLDEN


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With everything asked for, what cannot run has not passed."""
    report = yield
    if report.skipped and os.environ.get("PLURALIGN_TEST_ALL"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure here: {report.longrepr}"
    return report
