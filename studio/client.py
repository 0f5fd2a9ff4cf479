"""Label Studio's API, as far as this backend uses it: projects, tasks, predictions, backends.

What the server does with each call was observed on 1.23.2 (Community).
"""

from __future__ import annotations

import dataclasses
import json
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from studio.errors import ProjectMissingError, StudioRequestError
from studio.http_client import Call, HttpClient, RetryLimits

#: A JSON object as Label Studio sends it.
Object = dict[str, Any]
#: A query string.
Params = dict[str, str | int]

#: Seconds for calls that store many rows; one prediction takes 3 ms on sqlite.
LONG: Final = 900.0
#: Files in one upload; Django refuses more than 100.
UPLOAD_FILES: Final = 50
#: The fields of a project that cost Label Studio no counting.
SETTINGS: Final = (
    "id",
    "title",
    "created_at",
    "label_config",
    "model_version",
    "sampling",
    "show_collab_predictions",
    "start_training_on_annotation_update",
    "evaluate_predictions_automatically",
)


@dataclasses.dataclass(frozen=True)
class BasicAuth:
    """User and password with which Label Studio calls the backend."""

    user: str
    password: str = dataclasses.field(default="", repr=False)

    def fields(self) -> dict[str, str]:
        """Return the fields of Label Studio's API."""
        return {
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": self.user,
            "basic_auth_pass": self.password,
        }


class LabelStudio:
    """One Label Studio, as one account sees it. Safe to share between threads.

    Every method raises `StudioUnavailableError` (try later), `StudioRefusedError` (token or
    permission) or `StudioRequestError` (anything else the server turned down).

    Args:
        url: address of Label Studio, ``http(s)://host[:port][/path]``.
        token: personal access token or legacy token; which of the two is seen from its beginning.
        timeout: seconds for one response.
        retries: how often a call that may succeed later is repeated.
        limits: the other limits.
        trust: whose certificates are accepted, see `studio.tls`.

    Raises:
        ValueError: the address or the token cannot be one.
    """

    def __init__(  # noqa: PLR0913 - limits, and whom to trust
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        limits: RetryLimits | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        limits = dataclasses.replace(limits or RetryLimits(), timeout=timeout, retries=retries)
        self._http = HttpClient(url, token, limits, trust)

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    @property
    def url(self) -> str:
        """Address of Label Studio, without a trailing slash."""
        return self._http.url

    def authorization(self) -> Mapping[str, str]:
        """Return the header that authenticates us, for images that Label Studio serves.

        Valid for 30 seconds at least; ask again for each image.
        """
        return self._http.authorization()

    # --- the server and its projects -----------------------------------------------------------

    def version(self) -> str:
        """Return the server's release, such as ``1.23.2``."""
        return str(self._object(Call("GET", "/api/version")).get("release", "unknown"))

    def whoami(self) -> Object:
        """Return the account behind the token."""
        return self._object(Call("GET", "/api/current-user/whoami"))

    def project(self, project: int) -> Object:
        """Return the project with all its fields; Label Studio counts its tasks for it."""
        return self._object(Call("GET", f"/api/projects/{project}"))

    def settings(self, project: int) -> Object:
        """Return the fields of `SETTINGS` only, which cost Label Studio no counting.

        Raises:
            ProjectMissingError: the account sees no such project.
        """
        params: Params = {"ids": project, "include": ",".join(SETTINGS)}
        found = self._results(Call("GET", "/api/projects/", params=params))
        for row in found:
            if row.get("id") == project:
                return row
        raise ProjectMissingError(
            f"Label Studio at {self.url} has no project {project} that this account may see",
            status=404,
        )

    def projects(self) -> Iterator[Object]:
        """Yield every project the account may see, with the fields of `SETTINGS`."""
        page = 1
        while True:
            params: Params = {"page": page, "page_size": 100, "include": ",".join(SETTINGS)}
            reply = self._object(Call("GET", "/api/projects/", params=params))
            yield from _objects(reply.get("results"), "projects")
            if not reply.get("next"):
                return
            page += 1

    def create_project(self, title: str, config: str) -> Object:
        """Create a project; the title needs three characters or more."""
        body = {"title": title, "label_config": config}
        return self._object(Call("POST", "/api/projects", body=body))

    def update_project(self, project: int, fields: Mapping[str, object]) -> Object:
        """Change fields of a project; ``model_version`` must be a backend's title or a version."""
        return self._object(Call("PATCH", f"/api/projects/{project}", body=dict(fields)))

    # --- tasks and annotations -----------------------------------------------------------------

    def tasks(
        self,
        project: int,
        *,
        annotated_only: bool = False,
        unlabelled_only: bool = False,
        updated_after: str | None = None,
        page_size: int = 200,
    ) -> Iterator[Object]:
        """Yield every task in order of its id, with all annotations (skips too) and predictions.

        Each page begins after the last id seen, so a task that others add, delete or finish
        meanwhile shifts nothing: none is left out or yielded twice. 2 ms per task on sqlite.

        Args:
            project: the project's id.
            annotated_only: tasks with one annotation or more that is not a skip.
            unlabelled_only: the others; a task that was only skipped is among them.
            updated_after: ISO time; tasks whose annotations were made, changed or deleted since.
                Also those for which Label Studio fetched predictions (not imported ones), and the
                ones whose last change bears that very time: look at the annotations' own times.
            page_size: tasks per request.

        Raises:
            ValueError: ``updated_after`` is no ISO time, or both kinds are asked for at once.
        """
        if annotated_only and unlabelled_only:
            raise ValueError("annotated_only and unlabelled_only leave no task: ask for one")
        wanted = []
        if annotated_only:
            wanted.append(_condition("total_annotations", "greater", "Number", 0))
        if unlabelled_only:
            wanted.append(_condition("total_annotations", "equal", "Number", 0))
        if updated_after is not None:
            wanted.append(_condition("updated_at", "greater", "Datetime", _stamp(updated_after)))
        return self._pages(project, wanted, page_size)

    def _pages(self, project: int, wanted: Sequence[Object], page_size: int) -> Iterator[Object]:
        last = 0
        while True:
            items = [*wanted, _condition("id", "greater", "Number", last)]
            call = self._task_list(project, items, page_size=page_size, fields="all")
            reply = self._object(call)
            rows = _objects(reply.get("tasks"), "tasks")
            yield from rows
            if len(rows) >= int(reply.get("total", 0)):
                return
            before, last = last, max((int(row["id"]) for row in rows), default=0)
            if last <= before:
                raise StudioRequestError(
                    f"Label Studio at {self.url} does not page through tasks by id:"
                    " it needs version 1.23 or a later one",
                    status=200,
                )

    def newest_task(self, project: int) -> int:
        """Return the highest id of the project's tasks, 0 if it has none."""
        reply = self._object(self._task_list(project, [], order="-tasks:id", page_size=1))
        rows = _objects(reply.get("tasks"), "tasks")
        return max((int(row["id"]) for row in rows), default=0)

    @staticmethod
    def _task_list(
        project: int, items: Sequence[Object], *, order: str = "tasks:id", **params: str | int
    ) -> Call:
        """Ask for a page of tasks; data as stored, `s3://` addresses not turned into links."""
        query = json.dumps(
            {"filters": {"conjunction": "and", "items": list(items)}, "ordering": [order]}
        )
        fixed: Params = {"project": project, "page": 1, "resolve_uri": "false", "query": query}
        return Call("GET", "/api/tasks", params={**fixed, **params})

    def task(self, task: int) -> Object:
        """Return a task; Label Studio may ask the backend for its prediction first."""
        return self._object(Call("GET", f"/api/tasks/{task}"))

    def import_tasks(self, project: int, rows: Iterable[Mapping[str, object]]) -> list[int]:
        """Add tasks, ``{"data": {...}}`` each (or annotations too); return their ids."""
        return self._imported(project, body=[dict(row) for row in rows])

    def upload_files(self, project: int, paths: Sequence[Path]) -> list[int]:
        """Upload images into Label Studio's own storage, one task each; return the tasks' ids."""
        ids: list[int] = []
        for start in range(0, len(paths), UPLOAD_FILES):
            part = paths[start : start + UPLOAD_FILES]
            ids += self._imported(project, files=[(path.name, path.read_bytes()) for path in part])
        return ids

    def _imported(self, project: int, **content: Any) -> list[int]:  # noqa: ANN401 - fields of Call
        path = f"/api/projects/{project}/import"
        call = Call("POST", path, params={"return_task_ids": 1}, timeout=LONG, **content)
        return [int(task) for task in self._object(call).get("task_ids", [])]

    def create_annotation(
        self,
        task: int,
        result: Sequence[Mapping[str, object]],
        *,
        skipped: bool = False,
        ground_truth: bool = False,
        parent_prediction: int | None = None,
    ) -> Object:
        """Annotate a task as an annotator would; Label Studio sends its webhooks."""
        body = {
            "result": list(result),
            "was_cancelled": skipped,
            "ground_truth": ground_truth,
            "parent_prediction": parent_prediction,
        }
        return self._object(Call("POST", f"/api/tasks/{task}/annotations/", body=body))

    # --- predictions ---------------------------------------------------------------------------

    def predictions_of(self, task: int) -> list[Object]:
        """Return every stored prediction of a task, of all versions."""
        return self._results(Call("GET", "/api/predictions/", params={"task": task}))

    def import_predictions(self, project: int, rows: Sequence[Mapping[str, object]]) -> int:
        """Store predictions and return how many. Send a few hundred at a time: 3 ms each on sqlite.

        Args:
            project: the project's id.
            rows: ``{"task", "result", "score", "model_version"}`` each. One unknown task refuses
                all of them (400). Sending a row twice stores it twice.
        """
        path = f"/api/projects/{project}/import/predictions"
        body = [dict(row) for row in rows]
        reply = self._object(Call("POST", path, body=body, timeout=LONG))
        return int(reply.get("created", 0))

    def update_prediction(
        self, prediction: int, result: Sequence[Mapping[str, object]], *, score: float
    ) -> None:
        """Change a stored prediction in place.

        Its id stays, so an annotator who has the task open can still submit: after a deletion
        Label Studio refuses the annotation (400), since it names a prediction that is gone.
        """
        body = {"result": [dict(row) for row in result], "score": score}
        self._http.send(Call("PATCH", f"/api/predictions/{prediction}/", body=body))

    def delete_prediction(self, prediction: int) -> None:
        """Delete a stored prediction; nothing happens where it is gone already.

        An annotation that started from it loses the reference, and an editor that has it open is
        refused (400) when it submits: delete none of an annotated task, nor one just shown.
        """
        self._delete(f"/api/predictions/{prediction}/")

    def prediction_counts(self, project: int) -> dict[str, int]:
        """Return how many predictions of each version a project stores."""
        reply = self._object(Call("GET", f"/api/projects/{project}/model-versions/"))
        return {version: int(count) for version, count in reply.items()}

    # --- backends, webhooks, views -------------------------------------------------------------

    def backends(self, project: int) -> list[Object]:
        """Return the project's ML backends; Label Studio calls health and setup of each."""
        return self._results(Call("GET", "/api/ml", params={"project": project}))

    def known_backends(self, project: int) -> list[Object]:
        """Return the project's ML backends as last stored: Label Studio calls none of them."""
        params: Params = {"extended": "true", "include_live_models": "true", "limit": 1}
        path = f"/api/projects/{project}/model-versions/"
        live = self._object(Call("GET", path, params=params)).get("live")
        return _objects(live or [], "live models")

    def add_backend(self, project: int, *, url: str, title: str, auth: BasicAuth) -> Object:
        """Register an ML backend; Label Studio calls its health and setup first.

        Raises:
            PrivateAddressError: Label Studio does not call private addresses. With half of that
                protection off it has kept the backend all the same, without a webhook.
        """
        body = {"project": project, "url": url, "title": title, **auth.fields()}
        return self._object(Call("POST", "/api/ml", body=body))

    def update_backend(
        self,
        backend: int,
        *,
        project: int,
        url: str,
        title: str,
        auth: BasicAuth | None = None,
    ) -> Object:
        """Change a backend; Label Studio calls its health and setup before it saves.

        Args:
            backend: the backend's id.
            project: its project; Label Studio answers 500 without it.
            url: its address; the same.
            title: what annotators see, and what the project's ``model_version`` follows.
            auth: user and password for the calls. An empty password keeps the stored one. None
                makes Label Studio try, this once, without a password.
        """
        fields = {} if auth is None else auth.fields()
        body = {"project": project, "url": url, "title": title, **fields}
        return self._object(Call("PATCH", f"/api/ml/{backend}", body=body))

    def delete_backend(self, backend: int) -> None:
        """Delete a backend; nothing happens where it is gone already.

        Label Studio calls its health and setup first and deletes it whatever they return. The
        webhook that it made stays; a project's ``model_version`` that was its title is emptied.
        """
        self._delete(f"/api/ml/{backend}")

    def start_training(self, backend: int) -> None:
        """Press "Start Training": Label Studio sends START_TRAINING to the backend."""
        self._http.send(Call("POST", f"/api/ml/{backend}/train", timeout=LONG))

    def webhooks(self, project: int) -> list[Object]:
        """Return the project's webhooks."""
        return self._results(Call("GET", "/api/webhooks/", params={"project": project}))

    def create_webhook(
        self, project: int, *, url: str, actions: Sequence[str], headers: Mapping[str, str]
    ) -> Object:
        """Create a webhook of the project for the named actions."""
        body = {"project": project, **_webhook(url, actions, headers)}
        return self._object(Call("POST", "/api/webhooks/", body=body))

    def update_webhook(
        self, webhook: int, *, url: str, actions: Sequence[str], headers: Mapping[str, str]
    ) -> Object:
        """Change a webhook; all of it, since a PATCH without ``actions`` empties them."""
        body = _webhook(url, actions, headers)
        return self._object(Call("PATCH", f"/api/webhooks/{webhook}/", body=body))

    def delete_webhook(self, webhook: int) -> None:
        """Delete a webhook; nothing happens where it is gone already."""
        self._delete(f"/api/webhooks/{webhook}/")

    def views(self, project: int) -> list[Object]:
        """Return the tabs of the project's Data Manager."""
        return self._results(Call("GET", "/api/dm/views/", params={"project": project}))

    def create_view(self, project: int, data: Mapping[str, object]) -> Object:
        """Create a tab in the Data Manager; ``data`` holds title, ordering and filters."""
        body = {"project": project, "data": dict(data)}
        return self._object(Call("POST", "/api/dm/views/", body=body))

    def _delete(self, path: str) -> None:
        try:
            self._http.send(Call("DELETE", path))
        except StudioRequestError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    # --- shapes --------------------------------------------------------------------------------

    def _object(self, call: Call) -> Object:
        reply = self._http.send(call)
        if isinstance(reply, dict):
            return reply
        raise _unexpected(str(call), "an object", reply)

    def _results(self, call: Call) -> list[Object]:
        """Return the rows of a list, paged or bare."""
        reply = self._http.send(call)
        return _objects(reply.get("results") if isinstance(reply, dict) else reply, str(call))


def _objects(rows: object, what: str) -> list[Object]:
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return rows
    raise _unexpected(what, "a list of objects", rows)


def _unexpected(what: str, expected: str, got: object) -> StudioRequestError:
    return StudioRequestError(
        f"Label Studio answered {what} with {type(got).__name__} where {expected} was expected:"
        " is its address right, and its version 1.23 or later?",
        status=200,
    )


def _condition(field: str, operator: str, kind: str, value: object) -> Object:
    return {"filter": f"filter:tasks:{field}", "operator": operator, "type": kind, "value": value}


def _stamp(text: str) -> str:
    """Return the one form of a time that Label Studio's filters take; others are a 500 there."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _webhook(url: str, actions: Sequence[str], headers: Mapping[str, str]) -> Object:
    return {
        "url": url,
        "actions": list(actions),
        "headers": dict(headers),
        "send_for_all_actions": False,
        "send_payload": True,
        "is_active": True,
    }
