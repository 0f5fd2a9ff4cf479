"""GET / and /health: the process answers, whatever else is away."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient


@pytest.mark.parametrize("path", ["/", "/health"])
def test_it_answers_with_no_store_no_redis_and_no_label_studio(
    bare: Callable[..., FlaskClient], path: str
) -> None:
    client = bare(redis_url="redis://127.0.0.1:1/0")
    reply = client.get(path)
    assert reply.status_code == 200
    assert reply.get_json() == {"status": "UP", "model_class": "HRN"}
