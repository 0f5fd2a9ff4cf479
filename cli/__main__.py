"""The `hrn` command: reads arguments, calls one function, prints, and exits with a status.

0 done · 1 a check failed or the thing asked for is not so · 2 wrong usage or settings · 141 nobody
reads the output any more, as for any program in a pipe.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

from cli import evaluate, label_config, simulate
from worker.settings import SettingError, Settings

#: Where the demo lives, so that `hrn up` and `hrn demo` do not meet.
DEMO = "demo"

#: Looks at an idle project, half a second apart, before a training counts as lost.
PATIENCE = 20

Arguments: TypeAlias = argparse.Namespace
Run: TypeAlias = Callable[[Arguments, Settings], int]


#: Exit status of a program whose output nobody reads any more: 128 + SIGPIPE.
PIPE_CLOSED = 141


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
        run: Run = arguments.run
        return run(arguments, settings)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if arguments.verbose or not _ours(error):
            raise
        print(f"hrn: {_words(error)}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1


def _words(error: Exception) -> str:
    """The message of an error of ours; Redis' own do not say what it is about."""
    from redis.exceptions import RedisError

    from cli.redis_server import no_answer

    return no_answer(error) if isinstance(error, RedisError) else str(error)


def _ours(error: Exception) -> bool:
    """Is it one of our errors, whose message is made for people?"""
    from redis.exceptions import RedisError

    from cli.redis_server import NoRedisError

    if isinstance(error, SettingError | NoRedisError | RedisError | OSError):
        return True  # before what takes seconds to load

    from cli.projects import UsageError
    from cli.samples import SamplesError
    from cli.supervisor import StartError
    from evaluation.errors import ExperimentError
    from hierarchy.errors import HierarchyError
    from inference.errors import ModelError
    from studio.errors import StudioError
    from worker.errors import JobError

    known = (
        UsageError,
        SamplesError,
        StartError,
        ExperimentError,
        ModelError,
        StudioError,
        JobError,
        HierarchyError,
    )
    return isinstance(error, known)


def _settings(arguments: Arguments, environ: Mapping[str, str]) -> Settings:
    """The environment, over what a running server left in its home, under --home."""
    home = Path(arguments.home or environ.get("HRN_HOME") or Settings.home)
    if arguments.run is _demo and not arguments.home and "HRN_HOME" not in environ:
        home = home / (
            DEMO if arguments.data is None else f"{DEMO}-{arguments.data.resolve().name}"
        )
    # A server starts from what it is told now, not from what the last one here was told.
    servers = (_up, _demo, _serve, _work)
    known = {}
    if arguments.run not in servers:
        from cli import services

        known = services.read_environment(home)
    return Settings.from_environ({**known, **environ, "HRN_HOME": str(home)})


class _Parser(argparse.ArgumentParser):
    """A parser that says what a mistyped command or option may have meant."""

    #: Names of commands, by their parsers.
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
        parser.set_defaults(run=None, parser=parser)

    def __call__(
        self, name: str, run: Run, text: str, *, project: bool = False, as_json: bool = False
    ) -> argparse.ArgumentParser:
        sub: _Parser = self._commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, parser=sub)
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
    evaluate.add_arguments(command("evaluate", evaluate.run, text))
    text = "replay a labelling campaign on a folder of labelled photos, by several strategies"
    simulate.add_arguments(command("simulate", simulate.run, text))
    text = "write the label config for a tree of labels, or read the tree of a label config"
    label_config.add_arguments(command("label-config", label_config.run, text, as_json=True))
    doctor = command("doctor", _doctor, "what is wrong and how to fix it", as_json=True)
    doctor.add_argument("--project", type=int, help="one project's number (default: all)")
    return parser


def _add_servers(command: _Commands) -> None:
    text = "Label Studio, backend, worker and Redis on this machine, with pictures"
    demo = command("demo", _demo, text)
    data = "a folder of folders; the path of folders is the label"
    demo.add_argument("--data", type=Path, help=data)
    demo.add_argument("--port", type=int, default=8080, help="for Label Studio (default 8080)")
    backend_port = "for the backend (default 9090)"
    demo.add_argument("--backend-port", type=int, default=9090, help=backend_port)
    demo.add_argument("--label-studio", help="the label-studio program")
    command("up", _up, "server, worker and, without REDIS_URL, an embedded Redis; until Ctrl-C")
    command("serve", _serve, "the web server alone")
    text = "where the console is and its password"
    console = command("console", _console, text)
    console.add_argument("--unlock", action="store_true", help="forget wrong tries to sign in")
    command("work", _work, "one worker and the reconciler; until told to stop")


def _add_training(command: _Commands) -> None:
    connect = command("connect", _connect, "set a project up in Label Studio; says what it changed")
    connect.add_argument("--project", type=int, required=True, help="its number in Label Studio")
    text = "show our pre-labels even where that hides others, such as imported ones"
    connect.add_argument("--take-over", action="store_true", help=text)
    text = "take this backend out of a project in Label Studio; says what it changed"
    part = command("disconnect", _disconnect, text)
    part.add_argument("--project", type=int, required=True, help="its number in Label Studio")
    text = "remove the versions of a project that is disconnected or gone, and all that is known"
    forget = command("forget", _forget, text)
    forget.add_argument("--project", required=True, help="its number in Label Studio, or its key")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    train = command("train", _train, "ask for a training", project=True, as_json=True)
    train.add_argument("--force", action="store_true", help="even if no label is new")
    tune = train.add_mutually_exclusive_group()
    tune.set_defaults(fine_tune=None)
    tune.add_argument("--fine-tune", action="store_true", help="the backbone too")
    tune.add_argument(
        "--no-fine-tune", dest="fine_tune", action="store_false", help="the head only"
    )
    train.add_argument("--wait", action="store_true", help="show progress until it ends")
    train.add_argument("--cancel", action="store_true", help="stop what runs or waits instead")
    text = "versions, workers, what runs and how the last training ended"
    command("status", _status, text, as_json=True)


def _add_versions(command: _Commands) -> None:
    text = "all versions of a project; * is live"
    command("versions", _versions, text, project=True, as_json=True)
    text = "make a version live and follow new ones again"
    promote = command("promote", _promote, text, project=True)
    promote.add_argument("version")
    promote.add_argument("--pin", action="store_true", help="keep it live whatever is trained next")
    text = "how deep pre-labels may go, and the accuracy that they keep; without options, as it is"
    depth = command("depth", _depth, text, project=True, as_json=True)
    depth.add_argument("--target", type=float, help="accuracy of shown labels, between 0 and 1")
    depth.add_argument("--minimum", type=int, help="shallowest depth shown, 1 for the top level")
    depth.add_argument("--maximum", type=int, help="deepest depth shown, 0 for no limit")
    each = "the target holds for each level shown, not only on average"
    depth.add_argument("--strict", action=argparse.BooleanOptionalAction, help=each)
    keep = command("backup", _backup, "all versions of all projects in one file, with checksums")
    keep.add_argument("file", type=Path, metavar="FILE")
    bring = command("restore", _restore, "bring a backup back into a home without projects")
    bring.add_argument("file", type=Path, metavar="FILE")
    text = "go back to the version that was live before, and stay there"
    command("rollback", _rollback, text, project=True)
    predict = command("predict", _predict, "answers for picture files", project=True, as_json=True)
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE")
    text = "draw here, as a PNG, where the network looked for each level"
    predict.add_argument("--heatmap", type=Path, metavar="OUT.png", help=text)


def _depth(arguments: Arguments, settings: Settings) -> int:
    from cli import projects
    from worker.parts import Parts

    parts = Parts(settings)
    project = projects.find(parts, arguments.project)
    wishes = (arguments.target, arguments.minimum, arguments.maximum, arguments.strict)
    told = projects.limit_depth(parts, project, *wishes)
    _print(told, projects.depth_text(told), as_json=arguments.json)
    return 0


def _backup(arguments: Arguments, settings: Settings) -> int:
    from inference.backup import backup
    from worker.parts import Parts

    print(f"{arguments.file}: {backup(Parts(settings).store.files, arguments.file)} files")
    return 0


def _restore(arguments: Arguments, settings: Settings) -> int:
    from inference.backup import restore
    from worker.parts import Parts

    files = Parts(settings).store.files
    print(f"{restore(arguments.file, files)} files are back in {files.where}")
    return 0


def _demo(arguments: Arguments, settings: Settings) -> int:
    from cli import demo

    ports = (arguments.port, arguments.backend_port)
    demo.run(settings.home, arguments.data, ports=ports, label_studio=arguments.label_studio)
    return 0


def _up(_arguments: Arguments, settings: Settings) -> int:
    from dataclasses import replace

    from cli import redis_server

    if settings.redis_url:  # first of all: what comes next takes seconds to load
        redis_server.check(settings.redis_url)

    from cli import services
    from cli.serve import check_exposure
    from cli.supervisor import Supervisor

    check_exposure(settings)
    settings = replace(settings, redis_url=services.redis_url(settings.home))
    settings = services.with_console(settings)
    with Supervisor(settings.home / "logs") as supervisor:
        print(services.home_words(settings), flush=True)
        services.start_all(supervisor, settings)
        services.write_environment(settings.home, settings)
        print(
            f"Serving on {settings.host}:{settings.port}. {services.next_words(settings)}\n"
            f"{services.console_words(settings)}",
            flush=True,
        )
        supervisor.run()
    return 0


def _console(arguments: Arguments, settings: Settings) -> int:
    from backend.console.limits import Tries
    from cli import services
    from worker.parts import Parts

    print(services.console_words(settings))
    if arguments.unlock:
        Tries(Parts(settings)).unlock()
        print("wrong tries are forgotten: everybody may sign in again")
    return 0 if settings.console_password else 1


def _serve(_arguments: Arguments, settings: Settings) -> int:
    from cli.serve import serve

    serve(settings)
    return 0


def _work(_arguments: Arguments, settings: Settings) -> int:
    from cli import services
    from cli.supervisor import Supervisor
    from worker.parts import Parts

    Parts(settings).board.redis.ping()  # rather than a worker that dies again and again
    print(services.home_words(settings), flush=True)
    environment = services.child_environment(settings)
    with Supervisor(settings.home / "logs") as supervisor:
        supervisor.start("worker", [sys.executable, "-m", "worker"], environment)
        supervisor.start("reconciler", [sys.executable, "-m", "worker", "reconcile"], environment)
        print(f"Working; logs in {settings.home / 'logs'}", flush=True)
        supervisor.run()
    return 0


def _connect(arguments: Arguments, settings: Settings) -> int:
    from cli.connecting import connect_project
    from worker.parts import Parts

    over = arguments.take_over
    print(connect_project(Parts(settings), arguments.project, take_over=over, ask=_agreed))
    return 0


def _disconnect(arguments: Arguments, settings: Settings) -> int:
    from cli.connecting import disconnect_project
    from worker.parts import Parts

    print("\n".join(disconnect_project(Parts(settings), arguments.project)))
    return 0


def _forget(arguments: Arguments, settings: Settings) -> int:
    from cli.connecting import forget_project
    from worker.parts import Parts

    ask = (lambda _: True) if arguments.yes else _agreed
    print(forget_project(Parts(settings), arguments.project, ask))
    return 0


def _agreed(question: str) -> bool:
    """Ask the person at the terminal; no where there is none."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def _train(arguments: Arguments, settings: Settings) -> int:
    from cli import projects
    from worker.order import Order
    from worker.parts import Parts

    _check_training(arguments)
    parts = Parts(settings)
    project = projects.find(parts, arguments.project)
    if arguments.cancel:
        stopped = parts.board.cancel(project.key)
        lines = [projects.describe_cancelled(one) for one in stopped] or ["nothing runs or waits"]
        _print(stopped, "\n".join(lines), as_json=arguments.json)
        return 0 if stopped else 1
    order = Order(
        project.key,
        "hrn train",
        force=arguments.force,
        fine_tune=arguments.fine_tune,
    )
    asked = projects.ask_training(parts, project, order)
    if not arguments.wait:
        _print(asked, f"{asked['state']}: job {asked['job']}", as_json=arguments.json)
        return 0
    return _follow(parts, project.key, asked["job"], as_json=arguments.json)


def _check_training(arguments: Arguments) -> None:
    """Refuse options of which one would be ignored."""
    given = {
        "--force": arguments.force,
        "--fine-tune": arguments.fine_tune is True,
        "--no-fine-tune": arguments.fine_tune is False,
        "--wait": arguments.wait,
    }
    also = [name for name, is_given in given.items() if is_given]
    if arguments.cancel and also:
        arguments.parser.error(f"--cancel starts no training: leave out {', '.join(also)}")


def _follow(parts: Any, key: str, job: str, *, as_json: bool) -> int:  # noqa: ANN401 - Parts
    last, idle = "", 0
    while idle < PATIENCE:
        ended = next((run for run in parts.board.runs(key) if run["job"] == job), None)
        if ended is not None and "again" in ended:  # its process died, another took its place
            job = ended["again"]
            continue
        if ended is not None:
            _print(ended, f"{ended['state']}: {ended['why']}", as_json=as_json)
            return 0 if ended["state"] in {"published", "nothing new", "kept back"} else 1
        if (now := parts.board.progress(key)) and not as_json:
            line = f"{now['stage']} {now['done']}/{now['total']}"
            if line != last:
                print(line, flush=True)
            last = line
        idle = idle + 1 if parts.board.state(key)[0] == "idle" else 0
        time.sleep(0.5)
    print(f"hrn: {job} is gone from Redis without a word: ask again", file=sys.stderr)
    return 1


def _status(arguments: Arguments, settings: Settings) -> int:
    from cli import projects
    from worker.parts import Parts

    told = projects.status(Parts(settings))
    _print(told, projects.describe_all(told), as_json=arguments.json)
    return 1 if told["problem"] else 0


def _versions(arguments: Arguments, settings: Settings) -> int:
    from cli import projects
    from worker.parts import Parts

    parts = Parts(settings)
    rows = projects.versions(parts, projects.find(parts, arguments.project))
    lines = [projects.describe_version(row) for row in rows] or ["untrained"]
    _print(rows, "\n".join(lines), as_json=arguments.json)
    return 0


def _promote(arguments: Arguments, settings: Settings) -> int:
    from cli import projects
    from worker.parts import Parts

    parts = Parts(settings)
    project = projects.find(parts, arguments.project)
    projects.promote(parts, project, arguments.version, pin=arguments.pin)
    print(f"{arguments.version} is live")
    return 0


def _rollback(arguments: Arguments, settings: Settings) -> int:
    from cli import projects
    from worker.parts import Parts

    parts = Parts(settings)
    version = projects.rollback(parts, projects.find(parts, arguments.project))
    print(f"{version} is live and stays so until `hrn promote`")
    return 0


def _predict(arguments: Arguments, settings: Settings) -> int:
    from cli import heatmap, projects
    from worker.parts import Parts

    parts = Parts(settings)
    if arguments.heatmap:
        heatmap.check_wish(arguments.heatmap, arguments.files)
    project = projects.find(parts, arguments.project)
    rows = projects.predict(parts, project, arguments.files)
    if arguments.heatmap:
        heatmap.write_heatmap(parts, project, arguments.files, arguments.heatmap)
    lines = [
        f"{row['file']}: {row['problem']}"
        if "problem" in row
        else f"{row['file']}: {projects.describe_answer(row)}"
        for row in rows
    ]
    _print(rows, "\n".join(lines), as_json=arguments.json)
    return 1 if any("problem" in row for row in rows) else 0


def _doctor(arguments: Arguments, settings: Settings) -> int:
    from worker.doctor import examine
    from worker.parts import Parts

    found = examine(Parts(settings), arguments.project)
    lines = [
        f"ok    {one.what}" if one.ok else f"WRONG {one.what}\n      fix: {one.fix}"
        for one in found
    ]
    _print([asdict(one) for one in found], "\n".join(lines), as_json=arguments.json)
    return 0 if all(one.ok for one in found) else 1


def _print(data: Any, text: str, *, as_json: bool) -> None:  # noqa: ANN401 - anything JSON takes
    print(json.dumps(data, indent=1, ensure_ascii=False) if as_json else text, flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
