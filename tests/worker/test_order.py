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
    ("one", "other", "covers"),
    [
        (Order("a"), Order("a", "because"), True),
        (Order("a"), Order("a", force=True), False),
        (Order("a", force=True), Order("a"), True),
        (Order("a"), Order("a", fine_tune=True), False),
        (Order("a", fine_tune=True), Order("a", fine_tune=False), False),
        (Order("a", fine_tune=True), Order("a"), True),
    ],
)
def test_a_wish_covers_another_that_asks_for_no_more(
    one: Order, other: Order, *, covers: bool
) -> None:
    assert one.covers(other) is covers
