"""`hrn demo`: Label Studio with a prepared project, backend, worker and Redis on this machine."""

import json
import os
import random
import secrets
import shutil
import socket
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cli import samples, services
from cli.supervisor import StartError, Supervisor
from hierarchy import LabelTree
from inference.store import project_key
from studio.client import LabelStudio
from studio.label_config import LabelConfig, parse_label_config
from studio.label_config_writer import choose_form, label_config
from studio.predictions import prediction
from studio.project_setup import connect
from studio.schemas import project_key as studio_key
from worker.asking import places_of
from worker.order import Order
from worker.parts import Parts
from worker.settings import Settings

#: Images in the demo's project, and how many of them somebody has answered before you come.
PICTURES, ANSWERED = 360, 150

#: Share of a folder's images that are answered one level up, as people do who know less.
COARSE = 0.4

#: Tasks that come first in a new demo: plain images with a pre-label.
PLAIN = 12

USER = "demo@example.com"


@dataclass
class Demo:
    """Choices of a first start, which later starts find again."""

    label_studio_port: int
    backend_port: int
    password: str
    token: str
    backend_password: str
    console_password: str
    data: str = ""
    project: int = 0
    prepared: bool = False

    @classmethod
    def load(cls, home: Path, data: Path | None, ports: tuple[int, int]) -> "Demo":
        """Read the demo in ``home``, or make one up."""
        record = home / "demo.json"
        if record.exists():
            return cls(**json.loads(record.read_text(encoding="utf-8")))
        return cls(
            label_studio_port=_free_port(ports[0]),
            backend_port=_free_port(ports[1]),
            password=f"demo-{secrets.token_hex(4)}",
            token=secrets.token_hex(20),
            backend_password=secrets.token_urlsafe(12),
            console_password=secrets.token_urlsafe(12),
            data=str(data.resolve()) if data else "",
        )

    def save(self, home: Path) -> None:
        """Remember; readable by this user alone."""
        record = home / "demo.json"
        record.touch(mode=0o600)
        record.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @property
    def label_studio_url(self) -> str:
        """Label Studio's address for people."""
        return f"http://127.0.0.1:{self.label_studio_port}"

    @property
    def backend_url(self) -> str:
        """The backend's address for Label Studio."""
        return f"http://127.0.0.1:{self.backend_port}"


def run(arguments: Namespace, settings: Settings) -> int:
    """Start everything, prepare the project on the first start, and stay until Ctrl-C.

    Raises:
        StartError, StudioError, SamplesError: with what to do.
    """
    began, home, data = time.monotonic(), settings.home, arguments.data
    home.mkdir(parents=True, exist_ok=True)
    demo = Demo.load(home, data, (arguments.port, arguments.backend_port))
    if data is not None and demo.data != str(data.resolve()):
        raise StartError(
            f"the demo in {home} was made from {demo.data or 'the sample images'}: give --home "
            f"another folder, or remove {home} to start again"
        )
    demo.save(home)
    settings = _settings(home, demo)
    with Supervisor(home / "logs") as supervisor:
        _say("Starting Label Studio (the first time takes half a minute) ...")
        program = arguments.label_studio or _label_studio()
        _start_label_studio(supervisor, home, demo, program)
        _say("Starting Redis, the backend and a worker ...")
        services.start_all(supervisor, settings)
        services.write_environment(home, settings)
        client = LabelStudio(demo.label_studio_url, demo.token)
        if not demo.prepared:
            _prepare(client, home, demo, settings)
            demo.prepared = True
            demo.save(home)
        _connect(client, demo, settings)
        if not supervisor.stopping:
            _tell(demo, home, time.monotonic() - began)
        supervisor.run()
        _say("Stopping ...")
    return 0


def _settings(home: Path, demo: Demo) -> Settings:
    environment = {
        **os.environ,
        "HRN_HOME": str(home),
        "REDIS_URL": services.redis_url(home),
        "LABEL_STUDIO_URL": demo.label_studio_url,
        "LABEL_STUDIO_API_KEY": demo.token,
        "HRN_BACKEND_URL": demo.backend_url,
        "HRN_PORT": str(demo.backend_port),
        "HRN_HOST": "127.0.0.1",
        "HRN_PASSWORD": demo.backend_password,
        "HRN_CONSOLE_PASSWORD": demo.console_password,
        # In a demo one wants to see it learn: after ten answers, or half a minute.
        "HRN_TRAIN_EVERY": os.environ.get("HRN_TRAIN_EVERY", "10"),
        "HRN_TRAIN_AFTER_MINUTES": os.environ.get("HRN_TRAIN_AFTER_MINUTES", "0.5"),
    }
    return Settings.from_environ(environment)


def _label_studio() -> str:
    """Find the label-studio program: beside us in an environment of its own, or on PATH."""
    beside = Path(sys.prefix).parent / ".venv-label-studio" / "bin" / "label-studio"
    found = str(beside) if beside.exists() else shutil.which("label-studio")
    if found is None:
        raise StartError(
            "Label Studio is not installed here: `make demo` installs it, or give its program with "
            "--label-studio"
        )
    return found


def _start_label_studio(supervisor: Supervisor, home: Path, demo: Demo, program: str) -> None:
    folder = home / "label-studio"
    folder.mkdir(exist_ok=True)
    keep = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }
    environment = {
        **keep,
        "LABEL_STUDIO_USERNAME": USER,
        "LABEL_STUDIO_PASSWORD": demo.password,
        "LABEL_STUDIO_USER_TOKEN": demo.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder.resolve()),
        # Without both switches Label Studio refuses a backend on this machine.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    if _taken(demo.label_studio_port):
        raise StartError(
            f"port {demo.label_studio_port} is taken, and this demo's Label Studio lives there: "
            "end what listens on it (an earlier demo?), then start again"
        )
    port = str(demo.label_studio_port)
    command = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", port]
    supervisor.start(
        "label-studio",
        command,
        environment,
        ready=lambda: services.answers_http(f"{demo.label_studio_url}/health"),
        seconds=240,
    )


def _prepare(client: LabelStudio, home: Path, demo: Demo, settings: Settings) -> None:
    """Make the project, its images, the first answers and the first version."""
    images = _images(home, demo)
    tree = LabelTree.from_paths(sorted({sample.path for sample in images}))
    xml = label_config(tree, choose_form(tree).form)
    project = client.create_project(
        Path(demo.data).name if len(Path(demo.data).name) > 2 else "Sample animals", xml
    )
    demo.project = int(project["id"])
    _say(f"Uploading {len(images)} images ...")
    tasks = _upload(client, demo.project, images)
    _say(f"Answering {ANSWERED} of them as an earlier annotator would, some only coarsely ...")
    draw = random.Random(0)  # noqa: S311 - which images are answered is no secret
    answered = draw.sample(range(len(images)), min(ANSWERED, len(images) // 2))
    config = parse_label_config(xml)
    for at in answered:
        client.create_annotation(tasks[at], _answer(images[at], draw, config))
    _say("Training the first version ...")
    _connect(client, demo, settings)
    version = _first_version(settings, project, demo)
    plain = {task for task, sample in zip(tasks, images, strict=True) if _is_plain(sample)}
    begin_with(Parts(settings), _key(project, demo), plain, version)


def _is_plain(sample: samples.Sample) -> bool:
    return sample.quality in {"clear", "unknown"}


def begin_with(parts: Parts, key: str, plain: set[int], version: str) -> None:
    """Put plain images with a pre-label first: a newcomer should not meet a blur and an empty box.

    After the first answers, the next version asks for what teaches it most.
    """
    project = parts.store.project(key)
    if project is None:
        return
    shown = {
        int(task["id"]): sum(map(len, _labels(row)))
        for task in parts.studio.tasks(project.number, unlabelled_only=True)
        for row in task["predictions"]
        if task["id"] in plain and row["model_version"] == version and row["result"]
    }
    first = dict.fromkeys(sorted(shown, key=lambda task: -shown[task])[:PLAIN], "plain")
    if not first:
        return
    places = places_of(parts.store, key, version)
    rest = {task: why for task, why in places.batch.items() if task not in first}
    places = replace(places, batch={**first, **rest})
    parts.store.write_order(key, places.to_json())
    parts.board.ask_refresh(key, version, again=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        tasks = parts.studio.tasks(project.number, unlabelled_only=True)
        scores = {int(task["id"]): {row["score"] for row in task["predictions"]} for task in tasks}
        if all(places.place(task) in scores[task] for task in places.batch if task in scores):
            return
        time.sleep(0.5)


def _labels(row: dict[str, Any]) -> list[list[str]]:
    """Return the labels of a prediction's results, one list per result."""
    return [
        result["value"].get("choices") or result["value"]["taxonomy"][0] for result in row["result"]
    ]


def _images(home: Path, demo: Demo) -> list[samples.Sample]:
    if not demo.data:
        _say("Drawing sample images ...")
        return samples.make_samples(home / "samples", count=PICTURES)
    found = samples.from_folders(Path(demo.data))
    draw = random.Random(0)  # noqa: S311 - as above
    return draw.sample(found, min(2 * PICTURES, len(found)))


def _upload(client: LabelStudio, project: int, images: list[samples.Sample]) -> list[int]:
    """Upload under names that do not give the answer away; task ids in the images' order."""
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for number, sample in enumerate(images):
            name = Path(folder) / f"picture-{number:05d}{sample.file.suffix.lower()}"
            name.symlink_to(sample.file.resolve())
            names.append(name)
        return client.upload_files(project, names)


def _answer(
    sample: samples.Sample, draw: random.Random, config: LabelConfig
) -> list[dict[str, Any]]:
    depth = min(sample.suggest_depth, len(sample.path))
    if sample.quality == "unknown" and draw.random() < COARSE:
        depth = max(1, depth - 1)
    entry = prediction(config, sample.path[:depth], score=1.0, version="demo")
    results: Any = entry["result"]
    return [{key: value for key, value in one.items() if key != "score"} for one in results]


def _connect(client: LabelStudio, demo: Demo, settings: Settings) -> None:
    project = client.project(demo.project)
    key = _key(project, demo)
    connect(
        client,
        demo.project,
        backend_url=demo.backend_url,
        user=settings.user,
        password=settings.password.reveal(),
        version=Parts(settings).store.current(key) or "untrained",
    )


#: "nothing new" too: the policy's own training may have learnt from all labels before ours began.
_NO_FAILURE = frozenset({"published", "postponed", "died", "kept back", "nothing new"})


def _key(project: dict[str, Any], demo: Demo) -> str:
    return project_key(demo.label_studio_url, studio_key(demo.project, str(project["created_at"])))


def _first_version(settings: Settings, project: dict[str, Any], demo: Demo) -> str:
    """Ask for a training, wait until its answers are stored, and return its name."""
    parts = Parts(settings)
    key = _key(project, demo)
    parts.board.ask(Order(key, "first start of the demo"))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        version = parts.store.current(key)
        idle = parts.board.state(key)[0] == "idle" and not parts.board.depth()
        if version and idle and parts.board.refreshed(key) == version:
            return version
        runs = parts.board.runs(key)
        if runs and runs[0]["state"] not in _NO_FAILURE:
            raise StartError(f"the first training: {runs[0]['state']}: {runs[0]['why']}")
        time.sleep(0.3)
    raise StartError("the first training took longer than four minutes; its log is worker.log")


def _tell(demo: Demo, home: Path, seconds: float) -> None:
    _say(
        f"""
Ready after {seconds:.0f} s.

  Label Studio   {demo.label_studio_url}/projects/{demo.project}
  user           {USER}
  password       {demo.password}

  Console        {demo.backend_url}/console
  password       {demo.console_password}

Try this:
  1. Sign in, press "Label All Tasks". The image comes with a pre-label, as deep as the model is
     sure of. Right? Press Submit, or Ctrl+Enter.
  2. Wrong or too coarse? Choose another label, by the key beside it where there is one. Not sure
     yourself? Choose only what you know: any label of the tree is an answer.
  3. After ten answers a new version is trained and goes live; the next images carry its labels.
     Watch it:   {Path(sys.executable).parent / "hrn"} --home {home} status
  4. Then the images come first that teach the model most: of those it is sure of little. The tab
     "Surest first" begins with the others.

Ctrl-C ends everything; the next start finds it as you left it. To start again, remove {home}."""
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port(wanted: int) -> int:
    for port in range(wanted, wanted + 50):
        if not _taken(port):
            return port
    raise StartError(f"no free port from {wanted} to {wanted + 49}")
