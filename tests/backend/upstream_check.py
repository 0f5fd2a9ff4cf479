"""Runs in `.venv-upstream`, under label-studio-ml 1.0.9; `test_upstream.py` starts it.

``serve PORT FOLDER`` is that library's own server with our model; ``fit`` calls its training with
the keyword arguments that standard input holds as JSON, and prints what came back.
"""

import json
import logging
import sys
from typing import Any

from label_studio_ml.api import init_app

from backend.upstream import HRNModel


def serve(port: int, folder: str) -> None:
    """What the `_wsgi.py` does that `label-studio-ml init` writes."""
    init_app(model_class=HRNModel, model_dir=folder).run("127.0.0.1", port, threaded=True)


def fit(words: dict[str, Any]) -> dict[str, Any]:
    """As 1.0.9's `process_event` calls it."""
    config = words["data"]["project"]["label_config"]
    return HRNModel(label_config=config).fit((), **words)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3])
    else:
        print(json.dumps(fit(json.load(sys.stdin))))
