"""The table of faults that `make chaos` prints and docs/reliability.md shows.

Kept in the file that `CHAOS_FAULTS` names, if it does, over several runs.
"""

import os
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    kept = os.environ.get("CHAOS_FAULTS")
    return Ledger(Path(kept) if kept else tmp_path_factory.getbasetemp() / "faults.jsonl")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    kept = os.environ.get("CHAOS_FAULTS")
    if kept is not None and (ledger := Ledger(Path(kept))).rows():
        terminalreporter.section("faults survived (a failed test is one that was not)")
        terminalreporter.write_line(ledger.table())
