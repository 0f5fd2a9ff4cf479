"""Sessions: they hold for every process, end by themselves, and survive a disk that is full."""

from pathlib import Path

import pytest

from backend.console.sessions import IDLE, LONGEST, MOST_NOTES, Sessions
from worker.settings import Secret

KEY = Secret("password")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_795_440_233.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(tmp_path: Path, clock: Clock) -> Sessions:
    return Sessions(tmp_path / "console", KEY, clock)


def test_a_session_is_found_by_its_secret_alone(sessions: Sessions) -> None:
    secret = sessions.begin()
    assert sessions.find(secret) is not None
    for other in ("", secret[:-1], secret.upper(), "../" + secret, "\udcff", "x" * 10_000):
        assert sessions.find(other) is None


def test_another_process_knows_it_and_its_end(
    sessions: Sessions, tmp_path: Path, clock: Clock
) -> None:
    other = Sessions(tmp_path / "console", KEY, clock)
    secret = sessions.begin()
    assert other.find(secret) is not None
    other.end(secret)
    assert sessions.find(secret) is None


def test_a_new_password_ends_all(sessions: Sessions, tmp_path: Path, clock: Clock) -> None:
    secret = sessions.begin()
    assert Sessions(tmp_path / "console", Secret("another"), clock).find(secret) is None


def test_it_ends_when_nobody_asks_for_anything(sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin()
    clock.now += IDLE - 1
    assert sessions.find(secret) is not None
    clock.now += IDLE - 1
    assert sessions.find(secret) is not None
    clock.now += IDLE + 1
    assert sessions.find(secret) is None


def test_a_page_that_keeps_itself_up_to_date_keeps_nobody_signed_in(
    sessions: Sessions, clock: Clock
) -> None:
    secret = sessions.begin()
    for _ in range(3):
        clock.now += IDLE / 3
        assert sessions.find(secret, by_person=False) is not None
    clock.now += 1
    assert sessions.find(secret, by_person=False) is None


def test_it_ends_at_last_however_busy(sessions: Sessions, clock: Clock) -> None:
    secret, steps = sessions.begin(), int(LONGEST / (IDLE / 2))
    for _ in range(steps):
        clock.now += IDLE / 2
        assert sessions.find(secret) is not None
    clock.now += 1
    assert sessions.find(secret) is None


def test_neither_the_secret_nor_the_password_stands_on_disk(
    sessions: Sessions, tmp_path: Path
) -> None:
    secret = sessions.begin()
    (file,) = (tmp_path / "console").iterdir()
    kept = file.name + file.read_text("utf-8")
    assert secret not in kept
    assert KEY.reveal() not in kept
    assert file.stat().st_mode & 0o077 == 0


def test_messages_are_shown_once_and_are_bounded(sessions: Sessions) -> None:
    secret = sessions.begin()
    for number in range(MOST_NOTES + 2):
        sessions.note(secret, "good", f"{number}")
    words = [words for _, words in sessions.take_notes(secret)]
    assert words == [str(number) for number in range(2, MOST_NOTES + 2)]
    assert sessions.take_notes(secret) == ()


def test_without_a_disk_it_is_kept_in_the_process(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "console").write_text("a file where the folder should be", encoding="utf-8")
    sessions = Sessions(tmp_path / "console", KEY, clock)
    secret = sessions.begin()
    assert sessions.find(secret) is not None
    sessions.end(secret)
    assert sessions.find(secret) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"made": "x", "seen": 1, "notes": []}', '{"made": 1}']
)
def test_a_file_that_is_damaged_is_no_session(
    sessions: Sessions, tmp_path: Path, text: str
) -> None:
    secret = sessions.begin()
    (file,) = (tmp_path / "console").iterdir()
    file.write_text(text, encoding="utf-8")
    assert sessions.find(secret) is None


def test_what_has_ended_is_removed(tmp_path: Path) -> None:
    import os

    sessions = Sessions(tmp_path / "console", KEY)
    sessions.begin()
    (old,) = (tmp_path / "console").iterdir()
    os.utime(old, (1, 1))
    sessions.begin()
    assert not old.exists()
