"""Nothing in the tests waits for ever: what a test waits for, it waits for within a limit."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent

#: Functions of `subprocess` that return when the process has ended.
TO_THE_END: Final = {"run", "call", "check_call", "check_output"}

#: Methods that return when a process, a thread or an event is through.
WAITS: Final = {"wait", "communicate", "join"}


def waits(source: str) -> Iterator[str]:
    """What of a program waits without a limit, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.With):
            for item in node.items:
                if isinstance(item.context_expr, ast.Call) and _name(item.context_expr) == "Popen":
                    yield f"{node.lineno}: the end of `with Popen` has no limit"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, given = node.func.attr, {word.arg for word in node.keywords}
        of_subprocess = isinstance(node.func.value, ast.Name) and node.func.value.id == "subprocess"
        if of_subprocess and name in TO_THE_END and "timeout" not in given:
            yield f"{node.lineno}: subprocess.{name} has no timeout"
        elif name in WAITS and not node.args and not given & {"timeout", "seconds"}:
            yield f"{node.lineno}: {name}() has no limit"
        elif name == "communicate" and "timeout" not in given:
            yield f"{node.lineno}: communicate() has no timeout"


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_every_wait_has_a_limit(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{what}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for what in waits(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "give a timeout, or use tests/processes.py"


def test_the_search_finds_what_waits_for_ever() -> None:
    source = """
subprocess.run(["true"])
with subprocess.Popen(["cat"]) as process:
    process.wait()
    process.communicate(b"")
    process.wait(10)
    process.communicate(timeout=10)
    ", ".join(names)
subprocess.run(["true"], timeout=1)
"""
    assert [int(what.split(":")[0]) for what in waits(source)] == [3, 2, 4, 5]
