"""The demo's pure parts: what it remembers and how its annotator answers."""

import random
import socket
from argparse import Namespace
from pathlib import Path

import pytest

from cli.demo import _NO_FAILURE, Demo, _answer, _free_port, run
from cli.samples import Quality, Sample
from cli.supervisor import StartError
from hierarchy import LabelTree
from studio.label_config import parse_label_config
from studio.label_config_writer import choices_config, taxonomy_config
from worker.settings import Settings


def test_a_demo_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = Demo.load(tmp_path, None, (8080, 9090))
    first.save(tmp_path)
    assert Demo.load(tmp_path, None, (1, 2)) == first
    assert Demo.load(tmp_path / "other", None, (8080, 9090)).password != first.password
    assert (tmp_path / "demo.json").stat().st_mode & 0o077 == 0


def test_another_folder_of_images_wants_another_home(tmp_path: Path) -> None:
    Demo.load(tmp_path, None, (8080, 9090)).save(tmp_path)
    with pytest.raises(StartError, match="made from the sample images"):
        run(
            Namespace(data=tmp_path, port=8080, backend_port=9090, label_studio=None),
            Settings(home=tmp_path),
        )


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if port < 65_000:
            assert port < _free_port(port) < port + 50


@pytest.mark.parametrize(("quality", "depth"), [("sharp", 2), ("unknown", 1)])
def test_a_demos_annotator_names_what_a_careful_person_could(quality: Quality, depth: int) -> None:
    sample = Sample(Path("a.jpg"), ("Cat", "Siamese", "Blue"), quality, 2)
    depths = set()
    draw = random.Random(0)
    config = parse_label_config(taxonomy_config(LabelTree.from_paths([sample.path])))
    for _ in range(50):
        (result,) = _answer(sample, draw, config)
        depths.add(len(result["value"]["taxonomy"][0]))
    assert min(depths) == depth
    assert max(depths) == 2


def test_in_a_cascade_it_answers_level_by_level() -> None:
    sample = Sample(Path("a.jpg"), ("Cat", "Siamese"), "clear", 2)
    config = parse_label_config(choices_config(LabelTree.from_paths([sample.path])))
    results = _answer(sample, random.Random(0), config)
    assert [one["value"] for one in results] == [{"choices": ["Cat"]}, {"choices": ["Siamese"]}]
    assert all("score" not in one for one in results)


@pytest.mark.parametrize(
    ("state", "fails"), [("nothing new", False), ("died", False), ("too few labels", True)]
)
def test_a_training_that_another_one_forestalled_is_no_failure(
    state: str,
    fails: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The policy may train before the demo's own order is begun."""
    assert (state not in _NO_FAILURE) == fails
