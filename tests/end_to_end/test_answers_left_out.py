"""Answers that are not learnt as they were given, in a real Label Studio: admins are shown them."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from cli.services import read_environment
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import Photo, evenly, photos
from tests.end_to_end.label_studio import RunningLabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]

#: Asks first whether anything is there, as camera traps do.
CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="present" toName="image"><Choice value="Something"/><Choice value="Empty"/></Choices>
<Taxonomy name="label" toName="image" visibleWhen="choice-selected" whenTagName="present"
 whenChoiceValue="Something">
 <Choice value="Fruit"><Choice value="Apple"/><Choice value="Pear"/></Choice>
 <Choice value="Vegetables"/><Choice value="Packages"/></Taxonomy></View>"""

APPLE, PEAR, VEGETABLES = ["Fruit", "Apple"], ["Fruit", "Pear"], ["Vegetables"]

#: What is said of each photo: so many of each.
SAID: list[tuple[int, list[list[str]] | None]] = [
    (8, [APPLE]),
    (8, [VEGETABLES]),
    (5, None),  # Empty
    (4, [APPLE, VEGETABLES]),
    (3, [APPLE, PEAR]),
    (2, []),  # submitted without an answer
]


def _results(said: list[list[str]] | None) -> list[dict[str, Any]]:
    present = {"choices": ["Empty" if said is None else "Something"]}
    asked = {"from_name": "present", "to_name": "image", "type": "choices", "value": present}
    label = {"from_name": "label", "to_name": "image", "type": "taxonomy"}
    if said == []:
        return []
    return [asked, *([] if said is None else [{**label, "value": {"taxonomy": said}}])]


@pytest.fixture(scope="module")
def project(
    label_studio: RunningLabelStudio, backend: RunningBackend, shared: Path
) -> tuple[int, str]:
    """A project with such answers, and what `hrn connect` says of it."""
    folder = shared / "data" / "grocery" / "train"
    chosen: list[Photo] = evenly(photos(folder), sum(count for count, _ in SAID), random.Random(3))
    number = label_studio.create_project("Left out", CONFIG)
    tasks = iter(label_studio.upload(number, [photo.file for photo in chosen]))
    client = label_studio.client()
    for count, said in SAID:
        for _ in range(count):
            client.create_annotation(next(tasks), _results(said))
    return number, backend.hrn("connect", "--project", str(number))


#: 30 answers, 23 of them learnt.
SENTENCES = (
    "5 of 30 answers say that nothing of the label tree is there",
    "4 of 23 answers name labels with nothing above them all",
    "3 of 23 answers name several labels",
    "2 of 30 answers were submitted empty",
)


def test_connect_says_what_is_not_learnt_as_it_was_given(project: tuple[int, str]) -> None:
    _, printed = project
    for sentence in SENTENCES:
        assert f"Note: {sentence}" in printed
    assert "takes several ticks" in printed
    assert 'hides the labels after some choices ("Empty")' in printed


def test_status_and_console_count_it_once_a_version_is_there(
    project: tuple[int, str], backend: RunningBackend
) -> None:
    number, _ = project
    backend.hrn("train", "--project", str(number), "--force", "--wait")
    (row,) = [one for one in backend.json("status")["projects"] if one["project"] == number]
    counts = {"nothing_there": 5, "several": 4, "several_as_parent": 3, "empty": 2}
    assert {key: row["labels"][key] for key in counts} == counts
    printed, page = backend.hrn("status"), _projects_page(backend)
    for sentence in SENTENCES:
        assert sentence in printed
        assert sentence in page


def _projects_page(backend: RunningBackend) -> str:
    """The console's first page, as an admin who signs in gets it."""
    password = read_environment(backend.home)["HRN_CONSOLE_PASSWORD"]
    with requests.Session() as session:
        form = session.get(f"{backend.url}/console/sign-in", timeout=30).text
        (token,) = re.findall(r'name="csrf" value="([^"]+)"', form)
        body = {"csrf": token, "password": password}
        headers = {"Referer": f"{backend.url}/console/sign-in", "Origin": backend.url}
        reply = session.post(
            f"{backend.url}/console/sign-in", data=body, headers=headers, timeout=30
        )
        reply.raise_for_status()
        return session.get(f"{backend.url}/console", timeout=30).text
