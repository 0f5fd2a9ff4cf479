"""What was tried and what it cost, for the table at the end of a run."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One fault, over all times it was tried. What was lost or broken fails its test at once."""

    tried: int = 0
    longest: float = 0.0
    notes: list[str] = field(default_factory=list)


class Ledger:
    """Rows by fault, in the order in which they came, kept in a file.

    Processes that test side by side and runs that follow each other write the same one.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def tell(self, fault: str, tried: int = 1, recovery: float = 0.0, note: str = "") -> None:
        """A fault was tried so many times, and the longest recovery took so many seconds."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps([fault, tried, recovery, note]).encode() + b"\n"
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line)  # in one piece, whoever else writes
        finally:
            os.close(file)

    def rows(self) -> dict[str, Row]:
        """All that was told."""
        rows: dict[str, Row] = {}
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            fault, tried, recovery, note = json.loads(line)
            row = rows.setdefault(fault, Row())
            row.tried += tried
            row.longest = max(row.longest, recovery)
            if note:
                row.notes.append(note)
        return rows

    @contextmanager
    def recovery(self, fault: str, note: str = "") -> Iterator[None]:
        """The body is one recovery; it raises if something was lost."""
        began = time.monotonic()
        yield
        self.tell(fault, recovery=time.monotonic() - began, note=note)

    def table(self) -> str:
        """Markdown; only what was survived gets here, so nothing was lost in any row."""
        lines = [
            "| fault | times tried | lost | broken | longest recovery, s | |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [
            f"| {fault} | {row.tried} | 0 | 0 | {row.longest:.1f} | {'; '.join(row.notes)} |"
            for fault, row in sorted(self.rows().items())
        ]
        return "\n".join(lines)
