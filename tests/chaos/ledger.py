"""What was tried and what it cost, for the table at the end of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Row:
    """One fault, over all times it was tried. What was lost or broken fails its test at once."""

    tried: int = 0
    longest: float = 0.0
    notes: list[str] = field(default_factory=list)


class Ledger:
    """Rows by fault, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def tell(self, fault: str, tried: int = 1, recovery: float = 0.0, note: str = "") -> None:
        """A fault was tried so many times, and the longest recovery took so many seconds."""
        row = self.rows.setdefault(fault, Row())
        row.tried += tried
        row.longest = max(row.longest, recovery)
        if note:
            row.notes.append(note)

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
            for fault, row in self.rows.items()
        ]
        return "\n".join(lines)
