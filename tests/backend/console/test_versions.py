"""The page of a project's versions: what it tells, and what each of its forms does."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import pytest
from flask.testing import FlaskClient

from inference.store import Project
from tests.backend.conftest import go_live
from tests.backend.console.conftest import Post
from tests.published import OTHER, manifest
from worker.parts import Parts
from worker.queue import Board


@pytest.fixture
def known(fresh: Callable[..., Project], parts: Parts) -> Project:
    """v3 is live; v2 was live before, v1 before that."""
    made = fresh()
    for _ in range(3):
        go_live(parts, made)
    return made


def address(known: Project, rest: str = "") -> str:
    return f"/console/projects/{known.key}/versions{rest}"


def test_every_version_is_told_with_its_figures(admin: FlaskClient, known: Project) -> None:
    page = admin.get(address(known))
    assert page.status_code == 200
    for version in ("v1", "v2", "v3"):
        assert f'id="{version}"' in page.text
    assert "the first version" in page.text
    assert "Roll back to v2" in page.text
    assert page.text.count("90 %") >= 6  # both levels of each


def test_an_untrained_project_is_told_what_comes_next(
    admin: FlaskClient, fresh: Callable[..., Project]
) -> None:
    assert "No version yet" in admin.get(address(fresh())).text


def test_a_refused_version_says_why_and_a_damaged_one_what_is_wrong(
    admin: FlaskClient, parts: Parts, known: Project
) -> None:
    why = "worse than v3 on 40 pictures: <i>70 %</i>"
    told = replace(manifest(OTHER, 1.0, "x"), gate={"passed": False, "why": why})
    parts.store.publish(known.key, told, {})
    broken = parts.store.root / "projects" / known.key / "versions/v1/manifest.json"
    broken.write_text("{", encoding="utf-8")
    page = admin.get(address(known)).text
    assert "Why it was refused" in page
    assert "worse than v3 on 40 pictures: &lt;i&gt;70 %" in page
    assert "cannot read v1/manifest.json" in page


def test_a_promoted_version_is_live_and_refreshed(
    post: Post, parts: Parts, known: Project, board: Board
) -> None:
    page = post(address(known, "/v1/promote")).text
    assert "v1 is live" in page
    assert parts.store.current(known.key) == "v1"
    assert f"refresh-{known.key}-v1" in board.queue.job_ids
    kept = parts.store.project(known.key)
    assert kept is not None
    assert not kept.pinned


def test_a_version_can_be_pinned_and_let_go(post: Post, parts: Parts, known: Project) -> None:
    page = post(address(known, "/v1/promote"), pin="on").text
    assert "new versions wait" in page
    assert "Let new versions follow" in page
    page = post(address(known, "/v1/promote")).text
    assert "Let new versions follow" not in page
    kept = parts.store.project(known.key)
    assert kept is not None
    assert not kept.pinned


def test_rolling_back_goes_on_until_there_is_nothing(
    post: Post, parts: Parts, known: Project
) -> None:
    assert "v2 is live again" in post(address(known, "/rollback")).text
    assert "v1 is live again" in post(address(known, "/rollback")).text
    assert "no earlier live version" in post(address(known, "/rollback")).text
    assert parts.store.current(known.key) == "v1"


def test_a_version_that_nothing_needs_is_deleted(post: Post, parts: Parts, known: Project) -> None:
    assert "v1 was deleted" in post(address(known, "/v1/delete")).text
    assert parts.store.versions(known.key) == ["v2", "v3"]


def test_the_live_version_is_not_deleted(
    post: Post, admin: FlaskClient, parts: Parts, known: Project
) -> None:
    page = post(address(known, "/v3/delete")).text
    assert "Nothing was deleted: v3 is live" in page
    assert "v3/delete" not in page
    assert "v1/delete" in page
    assert parts.store.versions(known.key) == ["v1", "v2", "v3"]


def test_a_note_is_kept_and_shown_as_text(post: Post, parts: Parts, known: Project) -> None:
    page = post(address(known, "/v2/note"), note="<script>alert(1)</script> good").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; good" in page
    assert "<script>alert" not in page
    assert parts.store.note(known.key, "v2") == "<script>alert(1)</script> good"


def test_a_download_holds_the_version(admin: FlaskClient, parts: Parts, known: Project) -> None:
    reply = admin.get(address(known, "/v1/download"))
    assert reply.headers["Content-Disposition"].endswith(f'{known.key}-v1.zip"')
    with zipfile.ZipFile(BytesIO(reply.data)) as packed:
        names = ["v1/manifest.json", "v1/weights.safetensors"]
        assert packed.namelist() == names
        assert packed.testzip() is None


def test_two_versions_are_compared(admin: FlaskClient, known: Project) -> None:
    page = admin.get(address(known, "/compare?first=v1&second=v3"))
    assert page.status_code == 200
    assert "Accuracy on level 2" in page.text
    assert "same" in page.text
    assert admin.get(address(known, "/compare")).status_code == 303
    assert admin.get(address(known, "/compare?first=v1&second=v9")).status_code == 404


@pytest.mark.parametrize("act", ["promote", "delete", "note"])
@pytest.mark.parametrize("version", ["v9", "..", "v1%2f..", "V1", "%00"])
def test_a_name_that_no_version_has_does_nothing(
    post: Post, parts: Parts, known: Project, version: str, act: str
) -> None:
    assert post(address(known, f"/{version}/{act}")).status_code == 404
    assert parts.store.versions(known.key) == ["v1", "v2", "v3"]
    assert parts.store.current(known.key) == "v3"


def test_what_was_promoted_without_redis_is_live(
    admin_without_redis: FlaskClient, parts: Parts, known: Project
) -> None:
    """The reconciler asks for the refresh when Redis is back."""
    from tests.backend.console.conftest import token

    data = {"csrf": token(admin_without_redis, "/console")}
    reply = admin_without_redis.post(address(known, "/v1/promote"), data=data)
    assert reply.status_code == 303
    assert parts.store.current(known.key) == "v1"


def test_many_versions_come_a_page_at_a_time(
    admin: FlaskClient, parts: Parts, known: Project
) -> None:
    told = manifest(OTHER, 1.0, "x")
    for _ in range(27):
        parts.store.publish(known.key, told, {})
    first, second = (admin.get(address(known, f"?page={n}")).text for n in (1, 2))
    assert 'id="v30"' in first
    assert 'id="v1"' not in first
    assert 'id="v1"' in second
