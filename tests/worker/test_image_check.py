"""What doctor says of a project's images, its last training and the labels that did not count."""

import base64
import io

from PIL import Image

from inference.store import Project
from studio.project_checks import Finding
from tests.published import publish, publish_earlier
from tests.worker.stand import Stand
from worker import doctor, jobs
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board


def found(parts: Parts, number: int = 1) -> dict[str, Finding]:
    """Findings by what they are about; each that is wrong says what to do."""
    findings = list(doctor.examine_data(parts, number))
    assert all(one.ok or one.fix for one in findings)
    return {one.code: one for one in findings}


def inline(kind: str = "PNG") -> str:
    """An image that stands in its task."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_images_that_can_be_read_are_said_to_be(parts: Parts, known: Project, stand: Stand) -> None:
    stand.label(5, minute=0)
    for task in stand.tasks:
        task["data"]["image"] = inline()
    told = found(parts, known.number)
    assert told["images"].ok
    assert told["images"].what.startswith("3 images")
    parts.decoders.close()


def test_of_images_that_cannot_be_had_each_has_its_reason(
    parts: Parts, known: Project, stand: Stand
) -> None:
    stand.label(5, minute=0)  # the stand answers 404 to their addresses
    stand.tasks[1]["data"]["image"] = inline("ICO")
    stand.tasks[2]["data"] = {"photo": "/data/upload/1/3.jpg"}
    told = found(parts, known.number)["images"]
    assert not told.ok
    assert told.what.startswith("3 of 3 images that were tried cannot be read. task 1: 404")
    assert "task 2: expected a JPEG" in told.what
    assert "task 3: its data has no image address in 'image'" in told.what
    parts.decoders.close()


def test_a_version_of_an_earlier_release_is_said_to_need_a_training(
    parts: Parts, known: Project
) -> None:
    publish_earlier(parts.store, known)
    told = found(parts, known.number)["version"]
    assert not told.ok
    assert told.what.startswith("v1 was trained by an earlier release")
    assert "hrn train" in told.fix


def test_a_project_without_tasks_has_nothing_to_try(parts: Parts, known: Project) -> None:
    assert found(parts, known.number) == {}


def test_labels_that_do_not_count_are_told_with_their_reasons_everywhere(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    """20 of another control, 16 with a text for a list: none is learnt from."""
    stand.label(36, minute=0)
    for at, task in enumerate(stand.tasks):
        result = task["annotations"][0]["result"][0]
        if at < 20:
            result["from_name"] = "taxon"
        else:
            result["value"] = {"taxonomy": ["Fruit > Apple"]}
    outcome = jobs.train_once(Order(known.key, "asked"), parts, "train-1")
    assert outcome["state"] == "too few labels"
    assert (
        "passed over: 20 (holds no result of label), 16 (value.taxonomy: expected a list of"
        in (outcome["why"])
    )
    told = found(parts, known.number)["training"]
    assert not told.ok
    assert "20 (holds no result of label)" in told.what
    assert "hrn train" in told.fix


def test_a_project_that_has_few_labels_yet_is_as_it_should_be(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    stand.label(1, minute=0)
    jobs.train_once(Order(known.key, "asked"), parts, "train-1")
    told = found(parts, known.number)["training"]
    assert told.ok
    assert "too few labels" in told.what


def test_images_that_are_none_end_a_training_for_good(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    """No waiting for the end of an outage: what is no image stays none."""
    stand.label(8, minute=0)
    for at, task in enumerate(stand.tasks):
        task["data"]["image"] = f"data:text/html,{at}"
        if at % 2:
            task["annotations"][0]["result"][0]["value"] = {"taxonomy": [["Milk"]]}
    outcome = jobs.train_once(Order(known.key, "asked"), parts, "train-1")
    assert outcome["state"] == "failed"
    assert (
        "8 of 8 images could not be read, mostly: the task holds data:text/html" in outcome["why"]
    )
    assert board._get(known.key, "later") is None
    told = found(parts, known.number)["training"]
    assert not told.ok
    assert "data:text/html" in told.what


def test_what_a_version_passed_over_is_told(parts: Parts, known: Project, stand: Stand) -> None:
    publish(parts.store, known)
    told = found(parts, known.number)["labels"]
    assert told.ok
    assert told.what == "v1 learnt from 20 labels"
