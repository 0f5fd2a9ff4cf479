"""How often a password may be tried, with Redis and without."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backend.console import limits
from backend.console.limits import OF_ALL, OF_ONE, WINDOW, Tries
from worker.parts import Parts
from worker.queue import Board
from worker.settings import Settings

Make = Callable[[], Tries]


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["redis", "no redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str, board: Board) -> Make:
    url = redis_url if request.param == "redis" else "redis://127.0.0.1:1/0"
    return lambda: Tries(Parts(Settings(home=tmp_path, redis_url=url)))


def test_an_address_is_stopped_after_some_tries_and_others_are_not(make: Make) -> None:
    tries = make()
    assert [tries.take("192.0.2.1") for _ in range(OF_ONE)] == [0] * OF_ONE
    assert 0 < tries.take("192.0.2.1") <= WINDOW
    assert tries.take("192.0.2.2") == 0


def test_who_runs_the_server_lets_everybody_try_again(
    tmp_path: Path, redis_url: str, board: Board
) -> None:
    """By `hrn console --unlock`, in a process of its own."""
    settings = Settings(home=tmp_path, redis_url=redis_url)
    tries = Tries(Parts(settings))
    for address in ("192.0.2.1", "192.0.2.2"):
        for _ in range(OF_ONE + 1):
            tries.take(address)
    Tries(Parts(settings)).unlock()
    assert tries.take("192.0.2.1") == tries.take("192.0.2.2") == 0


def test_a_right_password_begins_anew(make: Make) -> None:
    tries = make()
    for _ in range(OF_ONE):
        tries.take("192.0.2.1")
    tries.forgive("192.0.2.1")
    assert tries.take("192.0.2.1") == 0


def test_addresses_of_one_network_of_ipv6_are_one(make: Make) -> None:
    tries = make()
    for number in range(OF_ONE):
        assert tries.take(f"2001:db8::{number:x}") == 0
    assert tries.take("2001:db8::ffff") > 0
    assert tries.take("2001:db8:1::1") == 0


def test_many_addresses_together_are_stopped_but_not_who_has_signed_in_before(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OF_ALL", 20)
    assert OF_ALL > OF_ONE
    tries = make()
    tries.take("192.0.2.200")
    tries.forgive("192.0.2.200")
    waits = [tries.take(f"198.51.100.{number}") for number in range(30)]
    assert waits[0] == 0
    assert waits[-1] > 0
    assert tries.take("192.0.2.200") == 0


def test_servers_that_share_redis_count_together(redis_url: str, board: Board) -> None:
    first, second = (Tries(Parts(Settings(redis_url=redis_url))) for _ in range(2))
    for _ in range(OF_ONE):
        first.take("192.0.2.1")
    assert second.take("192.0.2.1") > 0


def test_what_is_no_address_is_counted_too(make: Make) -> None:
    tries = make()
    assert [tries.take("") for _ in range(OF_ONE)] == [0] * OF_ONE
    assert tries.take("what") > 0


def test_the_window_ends() -> None:
    clock = Clock()
    tries = Tries(Parts(Settings(redis_url="")), clock)
    for _ in range(OF_ONE + 1):
        tries.take("192.0.2.1")
    clock.now += WINDOW + 1
    assert tries.take("192.0.2.1") == 0
