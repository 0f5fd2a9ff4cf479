"""The table of faults that `make chaos` prints and docs/reliability.md shows."""

from typing import Final

import pytest

from tests.chaos.ledger import Ledger

LEDGER: Final = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEDGER] = Ledger()


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return request.config.stash[LEDGER]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ledger = terminalreporter.config.stash.get(LEDGER, None)
    if ledger is not None and ledger.rows:
        terminalreporter.section("faults survived (a failed test is one that was not)")
        terminalreporter.write_line(ledger.table())
