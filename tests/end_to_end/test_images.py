"""Images of a real Label Studio: where they may stand, and why one cannot be had."""

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from hierarchy import LabelTree
from inference.store import Project
from studio.errors import ImageError
from studio.image_decoder import ImageLimits
from studio.image_fetcher import ImageFetcher
from studio.label_config_writer import taxonomy_config
from tests.backend.conftest import jpeg
from tests.buckets import BUCKET, s3
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import taxonomy
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.published import TREE, publish

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]


@pytest.fixture(scope="module")
def uploads(
    label_studio: RunningLabelStudio, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Addresses of three images that were uploaded."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(3):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    number = label_studio.create_project("Uploads", taxonomy_config(TREE))
    tasks = label_studio.upload(number, sorted(folder.iterdir()))
    return [str(label_studio.client().task(task)["data"]["image"]) for task in tasks]


def connected(
    label_studio: RunningLabelStudio, backend: RunningBackend, title: str, config: str
) -> tuple[int, Project]:
    """A new project that calls this backend: its number, and what the store knows of it."""
    number = label_studio.create_project(title, config)
    backend.hrn("connect", "--project", str(number))
    (known,) = [one for one in backend.parts().store.projects() if one.number == number]
    return number, known


@pytest.fixture(scope="module")
def shop(
    label_studio: RunningLabelStudio, backend: RunningBackend, uploads: list[str]
) -> Iterator[dict[str, int]]:
    """A project whose tasks hold their images in every way there is; the tasks by the way."""
    number, known = connected(label_studio, backend, "Images", taxonomy_config(TREE))
    inline = base64.b64encode(jpeg(7)).decode()
    port = label_studio.url.rpartition(":")[2]
    refs = {
        "local": "/data/local-files/?d=shop/cat.jpg",
        "s3": "s3://images-of-nobody/cat.jpg",
        "gs": "gs://images-of-nobody/cat.jpg",
        "inline": f"data:image/jpeg;base64,{inline}",
        "name": f"http://localhost:{port}{uploads[0]}",
        "gone": "/data/upload/1/no-such-file.jpg",
    }
    tasks = label_studio.import_urls(number, list(refs.values()))
    yield {"number": number, **dict(zip(refs, tasks, strict=True))}
    backend.parts().board.cancel(known.key)


def fetched(backend: RunningBackend, shop: dict[str, int], name: str) -> bytes:
    """The image of one of those tasks, as a training fetches it."""
    parts = backend.parts()
    ref = parts.studio.task(shop[name])["data"]["image"]
    return parts.fetcher.fetch(ref, task_id=shop[name]).data


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("local", r"403 Forbidden from Label Studio: Serving local files .* disabled by default"),
        ("s3", r"404 .*; no source storage of this project holds s3://images-of-nobody, or"),
        ("gs", r"404 .*; no source storage of this project holds gs://images-of-nobody, or"),
        ("gone", r"Label Studio knows no such file: its upload was deleted"),
    ],
)
def test_label_studio_s_own_reason_is_told(
    backend: RunningBackend, shop: dict[str, int], name: str, words: str
) -> None:
    with pytest.raises(ImageError, match=words) as raised:
        fetched(backend, shop, name)
    assert "token" not in raised.value.reason


def test_an_object_that_a_storage_does_not_have_is_told(
    label_studio: RunningLabelStudio, backend: RunningBackend, shop: dict[str, int]
) -> None:
    with s3() as environment:
        storage: dict[str, Any] = {
            "project": shop["number"],
            "bucket": BUCKET,
            "s3_endpoint": environment["AWS_ENDPOINT_URL"],
            "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
            "region_name": environment["AWS_DEFAULT_REGION"],
            "presign": False,
            "use_blob_urls": True,
        }
        with label_studio.session() as page:
            reply = page.post(f"{label_studio.url}/api/storages/s3", json=storage, timeout=60)
        assert reply.ok, reply.text
        (task,) = label_studio.import_urls(shop["number"], [f"s3://{BUCKET}/no-such-cat.jpg"])
        with pytest.raises(
            ImageError, match=r"424 Failed Dependency from Label Studio: .+"
        ) as told:
            fetched(backend, shop | {"absent": task}, "absent")
    assert "token" not in told.value.reason


def test_a_token_that_label_studio_refuses_is_told_as_such(
    backend: RunningBackend, uploads: list[str]
) -> None:
    url = backend.environment["LABEL_STUDIO_URL"]
    wrong = {"Authorization": "Token " + "0" * 40}
    with (
        ImageFetcher(url, lambda: wrong, ImageLimits()) as fetcher,
        pytest.raises(ImageError, match=r"401 Unauthorized from Label Studio: .+access token"),
    ):
        fetcher.fetch(uploads[0])


def test_an_image_in_the_task_and_one_at_another_name_of_label_studio_are_read(
    backend: RunningBackend, shop: dict[str, int]
) -> None:
    """The name is what Label Studio calls itself when a project is set up."""
    assert fetched(backend, shop, "inline") == jpeg(7)
    assert fetched(backend, shop, "name") == jpeg(0)


def test_doctor_tries_three_images_and_repeats_why_they_cannot_be_had(
    backend: RunningBackend, shop: dict[str, int]
) -> None:
    told = backend.hrn("doctor", "--project", str(shop["number"]), status=1)
    assert "3 of 3 images that were tried cannot be read" in told
    assert "disabled by default" in told
    assert "holds s3://images-of-nobody" in told


def test_an_image_below_a_path_of_the_data_is_pre_labelled_when_label_studio_asks(
    label_studio: RunningLabelStudio, backend: RunningBackend, uploads: list[str]
) -> None:
    config = taxonomy_config(TREE).replace("$image", "$shots[0].url")
    number, known = connected(label_studio, backend, "Nested", config)
    tasks = label_studio.client().import_tasks(
        number, [{"data": {"shots": [{"url": address}]}} for address in uploads]
    )
    parts = backend.parts()
    fingerprint = parts.extractors.base().fingerprint
    version = publish(parts.store, known, TREE, fingerprint=fingerprint)
    reply = requests.post(
        f"{backend.url}/predict",
        json={
            "tasks": [label_studio.client().task(task) for task in tasks],
            "project": known.project,
            "label_config": config,
        },
        auth=backend.auth,
        timeout=60,
    )
    assert [bool(one["result"]) for one in reply.json()["results"]] == [True] * 3
    action = f"{label_studio.url}/api/dm/actions?id=retrieve_tasks_predictions&project={number}"
    with label_studio.session() as page:
        chosen = {"selectedItems": {"all": False, "included": tasks}}
        done = page.post(action, json=chosen, timeout=60)
    assert done.ok, done.text

    def shown() -> bool:
        rows = [label_studio.client().predictions_of(task) for task in tasks]
        found = [row for of_task in rows for row in of_task if row["model_version"] == version]
        return len(found) >= 3 and all(row["result"] for row in found)

    backend.until(shown, 60, "three pre-labels, none of them empty")
    parts.board.stop_refresh(known.key, version)


def test_annotations_that_teach_nothing_are_told_with_their_reasons(
    label_studio: RunningLabelStudio, backend: RunningBackend, uploads: list[str]
) -> None:
    tree = LabelTree.from_paths([("Fruit", "Apple"), ("Milk",)])
    config = re.sub(r'name="label"', 'name="taxon"', taxonomy_config(tree))
    number, _ = connected(label_studio, backend, "Passed over", config)
    other = taxonomy(("Fruit", "Apple"))  # of a control called otherwise
    text = [{**row, "from_name": "taxon", "value": {"taxonomy": ["Milk"]}} for row in other]
    label_studio.client().import_tasks(
        number,
        [
            {"data": {"image": address}, "annotations": [{"result": result}]}
            for address in uploads
            for result in (other, text)
        ],
    )
    told = backend.hrn("train", "--wait", "--project", str(number), status=None)
    told += backend.hrn("status", status=None)
    told += backend.hrn("doctor", "--project", str(number), status=1)
    why = "passed over: 3 (holds no result of taxon), 3 (value.taxonomy: expected a list of paths"
    assert told.count(why) == 3, told
