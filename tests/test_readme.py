"""What README promises is what is there: settings, routes, commands, targets, links."""

import argparse
import re
from pathlib import Path
from typing import Final

import pytest

from backend.app import create_app
from backend.console.blueprint import is_console
from cli.__main__ import _parser
from cli.services import as_environment
from tests.variables import setting_names
from worker.parts import Parts
from worker.settings import OF_LIBRARIES, Settings

ROOT: Final = Path(__file__).resolve().parent.parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")

#: A command of ours, in a code span or a block of commands; `make demo` and the folder are none.
COMMAND: Final = re.compile(r"(?:^|`)hrn ([a-z][a-z-]*)", re.MULTILINE)


def section(title: str) -> str:
    """The text under a heading, up to the next."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found is not None, f"README has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, its head left out."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


def told_settings() -> list[tuple[str, str]]:
    """Each variable of README's table with the text of its default, "" where there is none."""
    told = []
    for names, defaults, _ in rows(section("Settings")):
        variables = re.findall(r"`(\w+)`", names)
        cells = [cell.strip() for cell in defaults.split(",")]
        assert len(cells) in {len(variables), 1}, names
        cells += [""] * (len(variables) - len(cells))
        for variable, cell in zip(variables, cells, strict=True):
            literal = re.fullmatch(r"`(.+)`", cell)
            told.append((variable, literal[1] if literal else ""))
    return told


def test_the_settings_are_the_variables_that_are_read() -> None:
    names = [name for name, _ in told_settings()]
    assert sorted(names) == sorted(setting_names() | set(OF_LIBRARIES))


@pytest.mark.parametrize(("variable", "default"), told_settings())
def test_a_setting_has_the_default_that_is_told(variable: str, default: str) -> None:
    """Given by hand the default changes nothing; where none is told there is none."""
    if default:
        assert Settings.from_environ({variable: default}) == Settings.from_environ({})
    else:
        assert variable not in as_environment(Settings.from_environ({}))


def test_the_routes_are_those_of_the_application() -> None:
    text = section("Settings").partition("\nRoutes: ")[2]
    told = re.findall(r"`([A-Z]+) (/[\w/.]*)`", text)
    app = create_app(Parts(Settings()))
    served = [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if not is_console(rule.rule)  # pages, told of in words
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]
    assert sorted(told) == sorted(served)


def commands() -> set[str]:
    """Names of the parser's commands."""
    actions = [one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return {name for action in actions for name in action.choices}


def test_the_table_of_commands_is_that_of_the_parser() -> None:
    told = [name for first, *_ in rows(section("What happens")) for name in COMMAND.findall(first)]
    assert sorted(told) == sorted(commands())


def test_every_command_that_is_named_exists() -> None:
    named = set(COMMAND.findall(README))
    assert {"up", "connect", "doctor"} <= named
    assert named <= commands()


def test_every_option_in_the_table_of_commands_is_taken() -> None:
    """Options in a command's own span, and those told of all commands of a row."""
    choices: dict[str, argparse.ArgumentParser] = {}
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            choices |= action.choices
    checked = 0
    for first, second in rows(section("What happens")):
        spans = [(span, COMMAND.findall(f"`{span}")) for span in re.findall(r"`([^`]+)`", first)]
        for span, (name, *_) in spans:
            for option in re.findall(r"--[a-z-]+", f"{span} {second}"):
                assert option in choices[name].format_help(), f"hrn {name} {option}"
                checked += 1
    assert checked > 5


def test_every_target_that_is_named_exists() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_every_relative_link_leads_somewhere() -> None:
    links = [
        link.partition("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", README)
        if not re.match(r"[a-z]+:|#", link)
    ]
    assert "CONTRIBUTING.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
