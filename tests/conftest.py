"""Fixtures that every test shares."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.helpers import figures, processes

# One worker a core, so one thread a worker: said before NumPy and torch ask.
if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Starts the server of `helpers.processes`, once for all workers; it loads nothing until it is asked."""
    # A shell starts jobs in the background with SIGINT ignored, and children inherit that; tests of Ctrl-C need it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if processes.ADDRESS in os.environ:
        return
    folder = tempfile.TemporaryDirectory(prefix="medtl-")
    config.add_cleanup(folder.cleanup)
    # One secret for all tests: pseudonyms are the same in every folder, and no test writes one beside the code.
    secret = Path(folder.name) / "secret"
    secret.write_bytes(bytes(range(32)))
    os.environ["MEDTL_SECRET_FILE"] = str(secret)
    address = Path(folder.name) / "socket"
    server = processes.start(address)
    if server is not None:
        os.environ[processes.ADDRESS] = str(address)
        config.add_cleanup(lambda: processes.stop(server))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector, which runs before every training, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the figures of a test's reports empty; fixtures of a wider scope do so themselves."""
    figures.leave_out(monkeypatch)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The two sites that ship with the project."""
    return ROOT / "sample_data"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real scans named by MEDTL_REALDATA; the test is skipped without it."""
    folder = os.environ.get("MEDTL_REALDATA")
    if not folder:
        pytest.skip("set MEDTL_REALDATA to the folder of real scans")
    return Path(folder)
