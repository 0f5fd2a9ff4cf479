"""Our model under Label Studio's own server: the real 1.0.9 over HTTP, and the words of 2.x."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import quote

import pytest
import requests
import torch
from redis import Redis

from cli.redis_server import answers as redis_answers
from cli.redis_server import arguments as redis_arguments
from cli.redis_server import url as redis_url
from hierarchy import LabelTree
from inference.answers import answers
from inference.predictor import Answer
from inference.store import ModelStore, Project, project_key
from studio.label_config import parse_label_config
from tests.end_to_end.label_studio import free_port
from tests.processes import end, running
from tests.studio.configs import taxonomy_xml
from tests.studio.servers import Reply, Request, Server, serving
from worker.asking import places_of
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board, connect
from worker.settings import Settings

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = ROOT / ".venv-upstream" / "bin" / "python"
#: Seconds until a server answers and until a training is done, on a machine with other work.
START_SECONDS: Final = 120.0
TRAIN_SECONDS: Final = 120.0

TREE: Final = LabelTree.from_paths(
    [
        ("Fruit", "Pear", "Anjou"),
        ("Fruit", "Pear", "Kaiser"),
        ("Fruit", "Banana"),
        ("Vegetables", "Carrots"),
    ]
)
XML: Final = taxonomy_xml(TREE)
TOKEN: Final = "0123456789abcdef0123456789abcdef01234567"
PROJECT: Final = "12.1700000000"
#: A project as Label Studio's webhooks and API tell of it; its name to a backend is PROJECT.
TOLD: Final = {
    "id": 12,
    "title": "Grocery",
    "created_at": "2023-11-14T22:13:20.250000Z",
    "label_config": XML,
}


# --- pictures, labels and what Label Studio says of them ----------------------------------------


def reference(path: str) -> str:
    return f"/data/local-files/?d={quote(path)}"


def annotated(shared: Path, each: int) -> list[dict[str, Any]]:
    """Tasks with photos of every leaf, labelled with it, as Label Studio's API gives them."""
    tasks: list[dict[str, Any]] = []
    for leaf in TREE.leaves:
        folder = shared / "data" / "grocery" / "train" / Path(*TREE.paths[leaf])
        for photo in sorted(folder.glob("*.jpg"))[:each]:
            number = 1000 * leaf + len(tasks) + 1
            value = {"taxonomy": [list(TREE.paths[leaf])]}
            result = {"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}
            annotation = {"id": number, "result": [result], "updated_at": "2026-11-23T10:00:00Z"}
            data = {"image": reference(str(photo.relative_to(shared / "data" / "grocery")))}
            row = {"id": number, "project": 12, "data": data, "annotations": [annotation]}
            tasks.append(row)
    return tasks


def questions(shared: Path) -> list[dict[str, Any]]:
    """Three photos that nobody trained on, and one that is not there."""
    grocery = shared / "data" / "grocery"
    kinds = ("Fruit/Pear/Conference", "Fruit/Banana", "Vegetables/Carrots")
    photos = [min((grocery / "val" / kind).glob("*.jpg")) for kind in kinds]
    refs = [*(str(photo.relative_to(grocery)) for photo in photos), "val/Fruit/nothing-here.jpg"]
    return [
        {"id": at + 1, "project": 12, "data": {"image": reference(ref)}}
        for at, ref in enumerate(refs)
    ]


@contextmanager
def labels_api(tasks: list[dict[str, Any]]) -> Iterator[Server]:
    """The two pages of Label Studio's API that a training reads."""

    def answer(request: Request) -> Reply:
        if request.token != f"Token {TOKEN}":
            return Reply({"detail": "token"}, 401)
        if request.path == "/api/projects/":
            return Reply({"results": [TOLD]})
        if request.path == "/api/tasks":
            return Reply({"tasks": tasks, "total": len(tasks)})
        return Reply({}, 404)

    with serving(answer) as server:
        yield server


def environment(home: Path, shared: Path, **more: str) -> dict[str, str]:
    return {
        "HRN_HOME": str(home),
        "HRN_LOCAL_FILES": str(shared / "data" / "grocery"),
        "HRN_DEVICE": "cpu",
        "HRN_FINE_TUNE": "off",
        "HRN_TARGET_ACCURACY": "0.5",
        **more,
    }


# --- label-studio-ml 1.0.9, the real one --------------------------------------------------------


def start(words: list[str], settings: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
    if not PYTHON.exists():
        pytest.fail(f"no {PYTHON.relative_to(ROOT)}: run `make .venv-upstream/.done`")
    machine = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with log.open("w") as errors:
        return subprocess.Popen(
            [str(PYTHON), "-m", "tests.backend.upstream_check", *words],
            env={**machine, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings},
            cwd=log.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # it starts processes of its own, which end with it
        )


class Upstream:
    """Its own Flask server with our model, called as Label Studio calls it."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        folder.mkdir()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.jobs = folder / "jobs"
        self.log = folder / "log"
        words = ["serve", self.url.rpartition(":")[2], str(self.jobs)]
        self._process = start(words, settings, self.log)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=30)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        reply = requests.post(self.url + path, json=body, timeout=TRAIN_SECONDS)
        assert reply.ok, (reply.text, self.log.read_text()[-3000:])
        return reply.json()

    def setup(self) -> Any:
        return self.post("/setup", {"project": PROJECT, "schema": XML, "hostname": ""})

    def predict(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A round of Label Studio's: `/setup` always comes first."""
        self.setup()
        body = {"tasks": tasks, "project": PROJECT, "label_config": XML, "params": {}}
        found: list[dict[str, Any]] = self.post("/predict", body)["results"]
        return found

    def wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.3)

    def answers(self) -> bool:
        try:
            return self.get("/health").ok
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        end(self._process, grace=20)
        self._process.communicate(timeout=20)  # closes its pipes


@dataclass(frozen=True)
class Ours:
    """What 2.x's words led to, in our own environment: the first version."""

    waiting: dict[str, Any]
    outcome: dict[str, Any]
    reported: str | None
    predicted: list[dict[str, Any]]
    again: dict[str, Any]


def train_ourselves(settings: Mapping[str, str], shared: Path) -> Ours:
    with pytest.MonkeyPatch.context() as patch, over_base2(patch, settings) as model2:
        model = model2("12", label_config=XML)
        waiting = model.fit(*webhook("ANNOTATION_CREATED"))
        outcome = model.fit(*webhook("START_TRAINING"))
        reported = model.get("model_version")
        predicted = model2("12", label_config=XML).predict(questions(shared), context={})
        return Ours(waiting, outcome, reported, predicted, model.fit(*webhook("START_TRAINING")))


@dataclass(frozen=True)
class Story:
    """What 1.0.9 answered: untrained, with a version made by 2.x's words, with one of its own."""

    health: Any
    setup_untrained: Any
    untrained: list[dict[str, Any]]
    ours: Ours
    predicted: list[dict[str, Any]]
    webhook: Any
    live: str | None
    outcome: dict[str, Any]
    setup_trained: Any
    afterwards: list[dict[str, Any]]
    settings: Settings


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("upstream")
    with ExitStack() as held:
        labelled = annotated(shared, 2)
        studio = held.enter_context(labels_api(labelled))
        told = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": TOKEN}
        settings = environment(folder / "home", shared, **told)
        own = Settings.from_environ(settings)
        server = Upstream(folder / "server", settings)
        held.callback(server.stop)
        server.wait_until(server.answers, START_SECONDS)
        health = server.get("/health").json()
        setup_untrained, untrained = server.setup(), server.predict(questions(shared))
        ours = train_ourselves(settings, shared)
        predicted = server.predict(questions(shared))
        labelled[:] = annotated(shared, 3)
        webhook = server.post("/webhook", {"action": "START_TRAINING", "project": TOLD})
        outcome = server.jobs / str(webhook["job_id"]) / "job_result.json"
        server.wait_until(outcome.exists, TRAIN_SECONDS)
        server.wait_until(lambda: _is_json(outcome), 5)
        live = ModelStore(own.store).current(project_key(studio.url, PROJECT))
        yield Story(
            health,
            setup_untrained,
            untrained,
            ours,
            predicted,
            webhook,
            live,
            json.loads(outcome.read_text()),
            server.setup(),
            server.predict(questions(shared)),
            own,
        )


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except ValueError:
        return False


@pytest.mark.slow
class TestRealServer:
    """PyPI's label-studio-ml 1.0.9, in its own environment, over HTTP."""

    def test_it_is_up(self, story: Story) -> None:
        assert story.health["status"] == "UP"

    def test_untrained_project_gets_an_empty_entry_for_each_task(self, story: Story) -> None:
        assert story.setup_untrained == {"model_version": "INITIAL"}
        assert story.untrained == [{"result": [], "score": 0.0}] * 4

    def test_answers_are_those_of_the_version_we_published(
        self, story: Story, shared: Path
    ) -> None:
        parts = Parts(story.settings)
        project = parts.store.projects()[0]
        config = parse_label_config(XML)
        predictor = parts.predictors.get(project, "v1", config.tree)
        items = [(str(task["data"]["image"]), int(task["id"])) for task in questions(shared)[:3]]
        expected = answers(parts.extractors.of(predictor), predictor, items)
        places = places_of(parts.store, project.key, "v1")
        told = zip(story.predicted[:3], expected, items, strict=True)
        for entry, answer, (_, task) in told:
            assert isinstance(answer, Answer)
            shown = [tuple(one["value"]["taxonomy"][0]) for one in entry["result"]]
            assert shown == ([answer.path] if answer.path else [])
            assert entry["score"] == pytest.approx(places.place(task, answer.margin), abs=1e-3)
        assert any(entry["result"] for entry in story.predicted)

    def test_picture_that_is_not_there_costs_its_own_task_only(self, story: Story) -> None:
        assert story.predicted[3]["result"] == []
        assert len(story.predicted) == 4

    def test_predictions_carry_no_version_that_setup_does_not_say(self, story: Story) -> None:
        """Before its first job 1.0.9 can only say INITIAL, and Label Studio wants both alike."""
        assert all("model_version" not in entry for entry in story.predicted)

    def test_start_training_leads_to_a_new_version(self, story: Story) -> None:
        assert story.outcome["state"] == "published", story.outcome
        assert story.live == story.outcome["version"] == "v2"

    def test_setup_and_predictions_say_the_new_version(self, story: Story) -> None:
        assert story.setup_trained == {"model_version": "v2"}
        assert {entry["model_version"] for entry in story.afterwards} == {"v2"}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """A real Redis on a socket of its own."""
    address = redis_url(tmp_path)
    with running(redis_arguments(tmp_path), stdout=subprocess.DEVNULL):
        deadline = time.monotonic() + 20
        while not redis_answers(address):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield address


@pytest.mark.slow
def test_with_redis_the_wish_of_1_0_9_waits_in_our_queue(
    tmp_path: Path, shared: Path, redis: str
) -> None:
    """Its RQ 1.16 writes a job that our RQ 3 reads: the order is whole."""
    settings = environment(tmp_path / "home", shared, REDIS_URL=redis)
    process = start(["fit"], settings, tmp_path / "log")
    words = {"event": "START_TRAINING", "data": {"project": TOLD}}
    output, _ = process.communicate(json.dumps(words), timeout=START_SECONDS)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert json.loads(output)["state"] == "queued"
    key = f"label-studio-{PROJECT.replace('.', '-')}"
    with connect(redis) as connection:
        board = Board(connection)
        state, job = board.state(key)
        assert (state, board.depth()) == ("queued", 1)
        waiting = board.queue.fetch_job(str(job))
        assert waiting is not None
        assert Order.from_json(waiting.args[0]).project == key


# --- the words of 2.x ---------------------------------------------------------------------------


class Base2:
    """The part of label-studio-ml 2.x's `LabelStudioMLBase` that a model sees.

    2.x is not on PyPI, so that its own class cannot be installed from a lock; this one follows
    `label_studio_ml/model.py` of its repository: a new object a request, ``project_id`` the part
    before the dot, values kept between objects under (project, key), ``setup`` called last.
    """

    kept: dict[tuple[str, str], str] = {}  # noqa: RUF012 - shared on purpose, as its cache is

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None:
        """For models to override."""

    def get(self, key: str) -> str | None:
        return self.kept.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        self.kept[self.project_id, key] = value

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")


@contextmanager
def over_base2(patch: pytest.MonkeyPatch, settings: Mapping[str, str]) -> Iterator[Any]:
    """Our class over the base of 2.x, in a process with these settings."""
    library = ModuleType("label_studio_ml.model")
    library.LabelStudioMLBase = Base2  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "label_studio_ml", ModuleType("label_studio_ml"))
    patch.setitem(sys.modules, "label_studio_ml.model", library)
    patch.setattr(Base2, "kept", {})
    for name in [name for name in os.environ if name.startswith(("HRN_", "LABEL_STUDIO_"))]:
        patch.delenv(name)
    patch.delenv("REDIS_URL", raising=False)
    for name, value in settings.items():
        patch.setenv(name, value)
    patch.delitem(sys.modules, "backend.upstream", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two spin against whatever else the machine does
    try:
        yield importlib.import_module("backend.upstream").HRNModel
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("backend.upstream", None)


@pytest.fixture
def home(tmp_path: Path, shared: Path) -> dict[str, str]:
    """The environment of a server without Label Studio's API and without Redis."""
    return environment(tmp_path / "home", shared)


@pytest.fixture
def model2(monkeypatch: pytest.MonkeyPatch, home: dict[str, str]) -> Iterator[Any]:
    """Our class over the base of 2.x."""
    with over_base2(monkeypatch, home) as model:
        yield model


@pytest.fixture
def parts(home: dict[str, str]) -> Parts:
    """What that server's settings mean."""
    return Parts(Settings.from_environ(home))


def webhook(event: str) -> tuple[str, dict[str, Any]]:
    """As 2.x's `/webhook` calls `fit`: the action taken out of the body."""
    return event, {"project": dict(TOLD)}


def test_2x_untrained_setup_says_so(model2: Any) -> None:
    """Also with a label config that has no tree, which its own tests send."""
    model = model2(project_id="12", label_config="<View></View>")
    assert model.get("model_version") == "untrained"


def test_2x_untrained_project_gets_an_empty_entry_for_each_task(model2: Any, shared: Path) -> None:
    model = model2(project_id="12", label_config=XML)
    found = model.predict(questions(shared), context={})
    assert found == [{"result": [], "score": 0.0, "model_version": "untrained"}] * 4


def test_2x_one_task_without_a_list_gets_one_entry(model2: Any, shared: Path) -> None:
    model = model2(project_id="12", label_config=XML)
    assert len(model.predict(questions(shared)[0], context={})) == 1


def test_2x_fit_without_label_studio_says_what_to_set(model2: Any) -> None:
    outcome = model2("12", label_config=XML).fit(*webhook("START_TRAINING"))
    assert outcome["state"] == "failed"
    assert "LABEL_STUDIO_API_KEY" in outcome["why"]


def test_2x_event_that_changes_no_label_does_nothing(model2: Any, parts: Parts) -> None:
    outcome = model2("12", label_config=XML).fit(*webhook("PROJECT_UPDATED"))
    assert outcome["state"] == "nothing to do"
    assert parts.store.projects() == []


def test_2x_server_of_another_label_studio_does_not_answer_with_its_namesake(
    model2: Any, home: dict[str, str], parts: Parts
) -> None:
    """Ids repeat between installations."""
    theirs = "http://theirs.example"
    key = project_key(theirs, PROJECT)
    parts.store.register(Project(key, 12, PROJECT, theirs, XML))
    module = sys.modules[model2.__module__]
    assert module.find_project(parts, ["12"], XML).key == key
    ours = Settings.from_environ({**home, "LABEL_STUDIO_URL": "http://ours.example"})
    assert module.find_project(Parts(ours), ["12"], XML) is None


def test_of_two_projects_with_one_id_the_one_with_this_label_config_is_meant(
    model2: Any, parts: Parts
) -> None:
    module = sys.modules[model2.__module__]
    for name, config in (("12.1", XML), ("12.2", "<View/>")):
        parts.store.register(Project(project_key("a.example", name), 12, name, "", config))
    assert module.find_project(parts, [12], XML).project == "12.1"
    assert module.find_project(parts, [12], "").project == "12.2"
    assert module.find_project(parts, ["12.2"], XML).project == "12.2"


def test_project_that_nobody_names_is_known_by_its_label_config(model2: Any, parts: Parts) -> None:
    module = sys.modules[model2.__module__]
    made = module.remember_project(parts, [None, "12.1"], XML)
    assert module.find_project(parts, [], XML) == made
    assert module.find_project(parts, [""], "<View/>") is None


def test_2x_with_redis_events_are_noted_and_training_is_asked_for(
    model2: Any, redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis)
    model = model2("12", label_config=XML)
    key = f"label-studio-{PROJECT.replace('.', '-')}"
    with connect(redis) as connection:
        board = Board(connection)
        assert model.fit(*webhook("ANNOTATION_CREATED"))["state"] == "noted"
        assert board.events(key)[0] == 1
        assert board.state(key) == ("idle", None)
        assert model.fit(*webhook("START_TRAINING"))["state"] == "queued"
        assert board.state(key)[0] == "queued"
    _close(model2)


def _close(model: Any) -> None:
    """Connections that a process would keep until its end."""
    module = sys.modules[model.__module__]
    connection: Redis = module._parts().board.redis
    connection.close()


def test_while_a_training_runs_another_is_not_started(model2: Any, tmp_path: Path) -> None:
    module = sys.modules[model2.__module__]
    with module._alone(tmp_path, "a-project") as first:
        with module._alone(tmp_path, "a-project") as second:
            assert (first, second) == (True, False)
        with module._alone(tmp_path, "another") as other:
            assert other
    with module._alone(tmp_path, "a-project") as later:
        assert later


@pytest.mark.slow
class TestWordsOf2x:
    """Training through `fit(event, data)`, from Label Studio's API, without a queue."""

    def test_annotation_waits_for_its_like(self, story: Story) -> None:
        ours = story.ours
        assert (ours.waiting["state"], ours.waiting["model_version"]) == ("not yet", "untrained")

    def test_start_training_publishes(self, story: Story) -> None:
        assert (story.ours.outcome["state"], story.ours.outcome["model_version"]) == (
            "published",
            "v1",
        )

    def test_version_is_told_at_once(self, story: Story) -> None:
        assert story.ours.reported == "v1"
        assert {entry["model_version"] for entry in story.ours.predicted} == {"v1"}

    def test_same_labels_teach_nothing_new(self, story: Story) -> None:
        assert story.ours.again["state"] == "nothing new"

    def test_it_answers_as_1_0_9_does(self, story: Story) -> None:
        for ours, theirs in zip(story.ours.predicted, story.predicted, strict=True):
            paths = [[one["value"] for one in entry["result"]] for entry in (ours, theirs)]
            assert paths[0] == paths[1]


@pytest.mark.slow
def test_it_needs_neither_flask_nor_a_queue(tmp_path: Path) -> None:
    """Imported, and asked, where Flask, RQ and Redis are not installed."""
    script = """
import sys, types
for name in ("flask", "rq", "redis", "prometheus_client"):
    sys.modules[name] = None
library = types.ModuleType("label_studio_ml.model")
library.LabelStudioMLBase = object
sys.modules["label_studio_ml"] = types.ModuleType("label_studio_ml")
sys.modules["label_studio_ml.model"] = library
from backend.upstream import HRNModel
print(HRNModel().predict([{"id": 1, "data": {}}]), HRNModel().fit([])["state"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HRN_HOME": str(tmp_path), "REDIS_URL": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[{'result': [], 'score': 0.0}] failed"
