"""Orders: plain data that outlives releases."""

import json

import pytest

from worker.order import Order


def test_an_order_comes_back_from_the_queue_as_it_was() -> None:
    order = Order("studio-1-1", "asked", force=True, fine_tune=False, attempt=2, crashes=1)
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_an_older_release_reads_what_a_newer_one_wrote() -> None:
    assert Order.from_json({"project": "a", "colour": "red"}) == Order("a")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Order("a"), Order("a", "because"), Order("a")),
        (Order("a"), Order("a", force=True), Order("a", force=True)),
        (Order("a", force=True), Order("a"), Order("a", force=True)),
        (Order("a", fine_tune=True), Order("a"), Order("a", fine_tune=True)),
        (Order("a", fine_tune=True), Order("a", fine_tune=False), Order("a", fine_tune=False)),
        (
            Order("a", force=True),
            Order("a", fine_tune=True),
            Order("a", force=True, fine_tune=True),
        ),
    ],
)
def test_a_joined_wish_fulfils_both(one: Order, other: Order, both: Order) -> None:
    assert one.joined(other) == both


def test_one_that_an_earlier_release_took_keeps_what_is_known_here() -> None:
    waiting = {"project": "a", "fast": True, "force": True}
    assert Order.from_json(waiting) == Order("a", force=True)
