"""The threat model names tests that exist, and none of its threats goes without."""

import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """Cells of the table, without its head."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def known_tests() -> set[str]:
    """Names of all test functions."""
    return {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_threat_has_who_what_and_a_test() -> None:
    found = rows()
    assert len(found) >= 15
    for row in found:
        assert len(row) == 4, row
        assert all(row), row
        assert re.search(r"`test_\w+`", row[3]), row[0]


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert named <= known_tests()


def test_everyone_who_attacks_is_introduced() -> None:
    introduced = set(re.findall(r"\*an? ([\w ]+)\*", PAGE))
    attackers = {name.strip() for row in rows() for name in row[1].split(",")}
    assert attackers == introduced
