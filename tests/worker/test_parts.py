"""Parts: made when first used, each saying what it lacks."""

from pathlib import Path

import pytest

from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.settings import Secret, Settings


def test_making_them_opens_nothing(tmp_path: Path) -> None:
    Parts(Settings(home=tmp_path / "absent", redis_url="redis://127.0.0.1:1/0"))
    assert not (tmp_path / "absent").exists()


def test_a_board_needs_redis(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="REDIS_URL is not set"):
        _ = Parts(Settings(home=tmp_path)).board


@pytest.mark.parametrize(
    ("url", "token"), [("", "token"), ("http://studio", "")], ids=["no address", "no token"]
)
def test_label_studio_needs_address_and_token(tmp_path: Path, url: str, token: str) -> None:
    settings = Settings(home=tmp_path, label_studio_url=url, label_studio_token=Secret(token))
    with pytest.raises(MisconfiguredError, match="LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"):
        _ = Parts(settings).studio


def test_a_token_that_cannot_be_one_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, label_studio_url="http://a", label_studio_token=Secret(" \n")
    )
    with pytest.raises(MisconfiguredError, match="LABEL_STUDIO_API_KEY"):
        _ = Parts(settings).studio


def test_a_part_is_made_once(tmp_path: Path) -> None:
    parts = Parts(Settings(home=tmp_path))
    assert parts.store is parts.store
    assert parts.extractors is parts.extractors
    assert parts.fetcher is parts.fetcher


def test_local_files_are_read_where_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    parts = Parts(Settings(home=tmp_path, local_files=tmp_path))
    assert parts.fetcher.fetch("/data/local-files/?d=cat.jpg").data == b"cat"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://studio:8080/projects/22", "give Label Studio's own, http://studio:8080$"),
        ("http://studio/ls/projects", "give Label Studio's own, http://studio/ls$"),
        ("http://backend:9090", "LABEL_STUDIO_URL and HRN_BACKEND_URL are the same address"),
    ],
)
def test_an_address_that_is_not_label_studio_s_is_refused(address: str, said: str) -> None:
    settings = Settings(
        label_studio_url=address,
        label_studio_token=Secret("token"),
        backend_url="http://backend:9090",
    )
    with pytest.raises(MisconfiguredError, match=said):
        _ = Parts(settings).studio


@pytest.mark.parametrize("address", ["http://projects:8080", "http://studio/projects-of-us"])
def test_a_name_that_looks_like_a_page_is_none(address: str) -> None:
    settings = Settings(label_studio_url=address, label_studio_token=Secret("0" * 40))
    assert Parts(settings).studio is not None
