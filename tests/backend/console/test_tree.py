"""The page of the tree: labels, accuracy and mix-ups by node, on a tree of any size."""

import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from flask.testing import FlaskClient

from hierarchy import LabelTree
from hierarchy.calibration import evidence
from hierarchy.depth_selection import candidates
from inference.insight import as_tensors
from inference.predictor import EVIDENCE, evidence_tensors
from inference.store import Project
from tests.backend.conftest import go_live
from tests.backend.console import trained
from tests.published import manifest
from tests.studio.image_server import ImageServer
from worker.parts import Parts
from worker.training_config import TrainingConfig


@pytest.fixture(scope="module")
def known(parts: Parts, pictures: ImageServer) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingConfig, "for_networks", lambda *_, **__: trained.QUICK)
        return trained.train(parts, pictures, 911)


def cells(page: str, name: str) -> list[str]:
    """The words of the row that begins with a label."""
    for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL):
        words = [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        if words[0].startswith(name):
            return words
    raise AssertionError(f"no row of {name}")


def get(admin: FlaskClient, known: Project, query: str = "") -> str:
    reply = admin.get(f"/console/projects/{known.key}/tree{query}")
    assert reply.status_code == 200
    return reply.text


def test_labels_are_counted_here_and_below(admin: FlaskClient, known: Project) -> None:
    page = get(admin, known)
    assert cells(page, "Fruit")[1:3] == ["0", "12"]
    assert cells(page, "&lt;script&gt;")[1:3] == ["6", "6"]
    assert cells(page, "Milk")[1:3] == ["0 (few)", "–"]  # noqa: RUF001 - a dash
    fruit = trained.TREE.index(("Fruit",))
    below = get(admin, known, f"?under={fruit}")
    assert cells(below, "Apple")[1] == "6"
    assert "Milk" not in below


def test_accuracy_is_that_of_the_stored_evidence(
    admin: FlaskClient, known: Project, parts: Parts
) -> None:
    tensors = parts.store.weights(known.key, "v1")
    tree = LabelTree.from_json(parts.store.manifest(known.key, "v1").tree)
    fruit, nodes = tree.index(("Fruit",)), tensors[f"{EVIDENCE}nodes"].tolist()
    truth = tensors[f"{EVIDENCE}truth"].tolist()
    mine = [
        said[0] == fruit
        for said, true in zip(nodes, truth, strict=True)
        if tree.covers(fruit, true)
    ]
    assert len(mine) == 12
    assert cells(get(admin, known), "Fruit")[3] == f"{sum(mine) / 12:.0%} of 12".replace("%", " %")


def test_where_labels_are_missing_is_listed(admin: FlaskClient, known: Project) -> None:
    page = get(admin, known, "?show=missing&order=labels")
    assert "2 of 5 deepest labels had fewer than 5 examples" in page
    assert cells(page, "Milk")
    assert cells(page, "&lt;script&gt;alert(1)&lt;/script&gt; / plain")
    assert "Apple</" not in page.split("<tbody>")[1].split("</tbody>")[0]


def test_names_from_outside_are_text(admin: FlaskClient, known: Project) -> None:
    for query in ("", "?show=all", "?find=bold", "?find=<script>alert(2)</script>"):
        page = get(admin, known, query)
        assert "<script>alert" not in page
        assert "<b>bold" not in page


def test_labels_are_found_by_name_anywhere(admin: FlaskClient, known: Project) -> None:
    assert cells(get(admin, known, "?find=PEAR"), "Fruit / Pear")
    assert "No label has such a name" in get(admin, known, "?find=zebra")


@pytest.mark.parametrize(
    "query", ["?under=99999", "?under=-1", "?under=x", "?page=x", "?page=-4", "?show=x&order=y"]
)
def test_what_makes_no_sense_shows_the_whole_tree(
    admin: FlaskClient, known: Project, query: str
) -> None:
    assert cells(get(admin, known, query), "Fruit")


def test_an_unknown_version_is_not_found(admin: FlaskClient, known: Project) -> None:
    assert admin.get(f"/console/projects/{known.key}/tree?version=v9").status_code == 404


def test_a_version_of_an_earlier_release_says_that_nothing_was_recorded(
    admin: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    older = fresh()
    go_live(parts, older)
    assert "not recorded by the release" in get(admin, older)


def test_an_untrained_project_has_no_figures_yet(
    admin: FlaskClient, fresh: Callable[..., Project]
) -> None:
    assert "No version yet" in get(admin, fresh())


def test_ten_thousand_nodes_come_a_hundred_at_a_time(
    admin: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    tops, middles, leaves = 20, 20, 25
    tree = LabelTree.from_paths(
        [
            (f"top {a}", f"middle {b}", f"leaf {a} {b} {c}")
            for a in range(tops)
            for b in range(middles)
            for c in range(leaves)
        ]
    )
    assert len(tree) > 10_000
    chance = np.random.default_rng(0)
    truth = chance.integers(0, len(tree), 2_000)
    log_p = np.log(chance.dirichlet(np.ones(30), 2_000).repeat(len(tree) // 30 + 1, 1))
    found = candidates(log_p[:, : len(tree)], tree)
    seen = evidence(found, truth, tree)
    big = fresh(tree)
    tensors = {
        **evidence_tensors(seen),
        **as_tensors(truth=truth, nodes=found.nodes, labels=chance.integers(0, 9, len(tree))),
    }
    version = parts.store.publish(big.key, manifest(tree, 1.0, "x"), tensors)
    parts.store.point(big.key, version, reason="test")
    for query in ("", "?show=all", "?show=missing&order=labels&page=7", "?find=leaf&order=name"):
        begun = time.perf_counter()
        page = get(admin, big, query)
        print(
            f"{query or 'the first look'}: {time.perf_counter() - begun:.2f} s, {len(page)} bytes"
        )
        assert page.count("<tr>") <= 120
        assert len(page) < 300_000
