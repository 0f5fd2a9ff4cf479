"""The `hrn` command: reads arguments, calls one function, and exits with a status.

0 done · 1 a check failed or the thing asked for is not so · 2 wrong usage or settings · 141 nobody
reads the output any more, as for any program in a pipe.
"""

import argparse
import importlib
import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from cli import evaluate, label_config, simulate
from worker.settings import SettingError, Settings

#: Where the demo lives, so that `hrn up` and `hrn demo` do not meet.
DEMO: Final = "demo"

#: Commands that start from what they are told now, not from what the last server here was told.
SERVERS: Final = ("demo", "up", "serve", "work")

#: Exit status of a program whose output nobody reads any more: 128 + SIGPIPE.
PIPE_CLOSED: Final = 141

#: Packages whose errors have messages made for people.
OURS: Final = ("hierarchy", "studio", "inference", "worker", "backend", "evaluation", "cli")


def main(words: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        try:
            return _main(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `hrn status | head`: what is left goes nowhere, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _main(words: list[str] | None) -> int:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.parser.refuse_unknown(unknown)
    if arguments.run is None:
        parser.print_help()
        return 0
    try:
        settings = _settings(arguments, os.environ)
        module, _, function = arguments.run.partition(":")  # only now: --help does not wait
        status: int = getattr(importlib.import_module(module), function)(arguments, settings)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        text = _explain(error)
        if arguments.verbose or text is None:
            raise
        print(f"hrn: {text}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    return status


def _explain(error: Exception) -> str | None:
    """Return the message of an error for people, None for one that nobody expected."""
    from redis.exceptions import RedisError

    from cli.redis_server import no_answer

    if isinstance(error, RedisError):
        return no_answer(error)
    is_ours = type(error).__module__.partition(".")[0] in OURS
    return str(error) if is_ours or isinstance(error, OSError) else None


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Read the environment, over what a running server left in its home, under --home."""
    home = Path(arguments.home or environ.get("HRN_HOME") or Settings.home)
    if arguments.command == "demo" and not arguments.home and "HRN_HOME" not in environ:
        home /= DEMO if arguments.data is None else f"{DEMO}-{arguments.data.resolve().name}"
    known = {}
    if arguments.command not in SERVERS:
        from cli import services

        known = services.read_environment(home)
    return Settings.from_environ({**known, **environ, "HRN_HOME": str(home)})


class _Parser(argparse.ArgumentParser):
    """A parser that says what a mistyped command or option may have meant."""

    #: Parsers of commands, by name.
    commands: Mapping[str, argparse.ArgumentParser] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with 2."""
        if found := re.match(r"argument COMMAND: invalid choice: '(.*?)'", message):
            name = found[1]
            message = f"there is no command {name!r}{_meant(name, self.commands)} (`hrn` lists all)"
        super().error(message)

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """Exit with 2, naming the options that nobody knows."""
        known = re.findall(r"--[\w-]+", self.format_usage())
        self.error(f"unrecognized arguments: {' '.join(words)}{_meant(words[0], known)}")


def _meant(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, 1, cutoff=0.7)
    return f", did you mean {close[0]!r}?" if close else ""


class _Commands:
    """Adds commands to the parser, each with the function that runs it."""

    def __init__(self, parser: _Parser) -> None:
        self._commands = parser.add_subparsers(title="commands", metavar="COMMAND")
        parser.commands = self._commands.choices
        parser.set_defaults(run=None, command=None, parser=parser)

    def __call__(
        self, name: str, run: str, text: str, *, project: bool = False, as_json: bool = False
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: of the command.
            run: module and function, which is loaded when the command runs.
            text: for `--help`.
            project: whether it has `--project`.
            as_json: whether it has `--json`.
        """
        sub: _Parser = self._commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, command=name, parser=sub)
        if project:
            known = "its number in Label Studio, or its key; may be left out if there is one"
            sub.add_argument("--project", help=known)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        return sub


def _parser() -> _Parser:
    parser = _Parser(
        prog="hrn",
        description="Pre-labels images in Label Studio by a taxonomy, "
        "as deep as it can stand behind.",
        epilog="Settings come from the environment; README lists them.",
    )
    parser.add_argument("--home", help="folder of models, cache and Redis (HRN_HOME; default var)")
    parser.add_argument("--verbose", action="store_true", help="show where an error came from")
    ours = importlib.metadata.version("label-studio-hrn")
    parser.add_argument("--version", action="version", version=f"hrn {ours}")
    command = _Commands(parser)
    _add_servers(command)
    _add_training(command)
    _add_versions(command)
    text = "compare methods on a folder of labelled photos, as the published experiments do"
    evaluate.add_arguments(command("evaluate", "cli.evaluate:run", text))
    text = "replay a labelling campaign on a folder of labelled photos, by several strategies"
    simulate.add_arguments(command("simulate", "cli.simulate:run", text))
    text = "write the label config for a tree of labels, or read the tree of a label config"
    label = command("label-config", "cli.label_config:run", text, as_json=True)
    label_config.add_arguments(label)
    text = "what is wrong and how to fix it"
    doctor = command("doctor", "cli.commands:doctor", text, as_json=True)
    doctor.add_argument("--project", type=int, help="one project's number (default: all)")
    return parser


def _add_servers(command: _Commands) -> None:
    text = "Label Studio, backend, worker and Redis on this machine, with images"
    demo = command("demo", "cli.demo:run", text)
    data = "a folder of folders; the path of folders is the label"
    demo.add_argument("--data", type=Path, help=data)
    demo.add_argument("--port", type=int, default=8080, help="for Label Studio (default 8080)")
    backend_port = "for the backend (default 9090)"
    demo.add_argument("--backend-port", type=int, default=9090, help=backend_port)
    demo.add_argument("--label-studio", help="the label-studio program")
    text = "server, worker and, without REDIS_URL, an embedded Redis; until Ctrl-C"
    command("up", "cli.services:up", text)
    command("serve", "cli.serve:run", "the web server alone")
    console = command("console", "cli.services:console", "where the console is and its password")
    console.add_argument("--unlock", action="store_true", help="forget wrong tries to sign in")
    command("work", "cli.services:work", "one worker and the reconciler; until told to stop")


def _add_training(command: _Commands) -> None:
    text = "set a project up in Label Studio; says what it changed"
    connect = command("connect", "cli.commands:connect", text)
    connect.add_argument("--project", type=int, required=True, help="its number in Label Studio")
    text = "show our pre-labels even where that hides others, such as imported ones"
    connect.add_argument("--take-over", action="store_true", help=text)
    text = "take this backend out of a project in Label Studio; says what it changed"
    disconnect = command("disconnect", "cli.commands:disconnect", text)
    disconnect.add_argument("--project", type=int, required=True, help="its number in Label Studio")
    text = "remove the versions of a project that is disconnected or gone, and all that is known"
    forget = command("forget", "cli.commands:forget", text)
    forget.add_argument("--project", required=True, help="its number in Label Studio, or its key")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    text = "ask for a training"
    train = command("train", "cli.commands:train", text, project=True, as_json=True)
    train.add_argument("--force", action="store_true", help="even if no label is new")
    tune = train.add_mutually_exclusive_group()
    tune.set_defaults(fine_tune=None)
    tune.add_argument("--fine-tune", action="store_true", help="the backbone too")
    text = "the head only"
    tune.add_argument("--no-fine-tune", dest="fine_tune", action="store_false", help=text)
    train.add_argument("--wait", action="store_true", help="show progress until it ends")
    train.add_argument("--cancel", action="store_true", help="stop what runs or waits instead")
    text = "versions, workers, what runs and how the last training ended"
    command("status", "cli.commands:status", text, as_json=True)


def _add_versions(command: _Commands) -> None:
    text = "all versions of a project; * is live"
    command("versions", "cli.commands:versions", text, project=True, as_json=True)
    text = "make a version live and follow new ones again"
    promote = command("promote", "cli.commands:promote", text, project=True)
    promote.add_argument("version")
    promote.add_argument("--pin", action="store_true", help="keep it live whatever is trained next")
    text = "how deep pre-labels may go, and the accuracy that they keep; without options, as it is"
    depth = command("depth", "cli.commands:depth", text, project=True, as_json=True)
    depth.add_argument("--target", type=float, help="accuracy of shown labels, between 0 and 1")
    depth.add_argument("--minimum", type=int, help="shallowest depth shown, 1 for the top level")
    depth.add_argument("--maximum", type=int, help="deepest depth shown, 0 for no limit")
    each = "the target holds for each level shown, not only on average"
    depth.add_argument("--strict", action=argparse.BooleanOptionalAction, help=each)
    text = "all versions of all projects in one file, with checksums"
    command("backup", "cli.commands:backup", text).add_argument("file", type=Path, metavar="FILE")
    text = "bring a backup back into a home without projects"
    command("restore", "cli.commands:restore", text).add_argument("file", type=Path, metavar="FILE")
    text = "go back to the version that was live before, and stay there"
    command("rollback", "cli.commands:rollback", text, project=True)
    text = "answers for image files"
    predict = command("predict", "cli.commands:predict", text, project=True, as_json=True)
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE")
    text = "draw here, as a PNG, where the network looked for each level"
    predict.add_argument("--heatmap", type=Path, metavar="OUT.png", help=text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
