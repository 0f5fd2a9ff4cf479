"""What `hrn doctor` reports: each thing that can be wrong is found, and nothing else."""

from __future__ import annotations

import pytest

from studio.client import BasicAuth, LabelStudio
from studio.errors import StudioRequestError
from studio.project_checks import Finding, checks
from studio.project_setup import ACTIONS
from tests.end_to_end.label_studio import RunningLabelStudio, free_port
from tests.studio.recording_backend import PASSWORD, USER, RecordingBackend, join, running_backend
from tests.studio.servers import Reply, Request, script, serving
from tests.studio.test_client import CONFIG

LEGACY = "0123456789abcdef0123456789abcdef01234567"
AUTH = BasicAuth(USER, PASSWORD)


def wrong(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    """The findings that are not ok; each of them says what to do."""
    found = {finding.code: finding for finding in findings if not finding.ok}
    assert all(finding.fix for finding in found.values())
    return found


# --- what keeps us from looking, on a small server ---


def test_no_label_studio_at_all() -> None:
    client = LabelStudio(f"http://127.0.0.1:{free_port()}", LEGACY, retries=0)
    (finding,) = checks(client, 1, "http://backend")
    assert (finding.code, finding.ok) == ("label_studio", False)
    assert "nothing listens there" in finding.what


@pytest.mark.parametrize(
    ("status", "detail", "code"),
    [
        (401, "Invalid token.", "token"),
        (401, "x: legacy token authentication has been disabled for y", "legacy_tokens_off"),
        (403, "You do not have permission to perform this action.", "permission"),
        (404, "not here", "request"),
    ],
)
def test_a_refusal_is_reported_by_its_kind(status: int, detail: str, code: str) -> None:
    with serving(script(Reply({"detail": detail}, status))) as server:
        (finding,) = checks(LabelStudio(server.url, LEGACY), 1, "http://backend")
    assert finding.code == code
    assert detail in finding.what or code == "legacy_tokens_off"
    assert finding.fix


def test_an_old_label_studio_is_found() -> None:
    def answer(request: Request) -> Reply:
        known = {"/api/version": {"release": "1.9.2"}, "/api/current-user/whoami": {"email": "a@b"}}
        return Reply(known[request.path]) if request.path in known else Reply(status=404)

    with serving(answer) as server:
        found = wrong(checks(LabelStudio(server.url, LEGACY), 1, "http://backend"))
    assert "1.9.2" in found["label_studio"].what


# --- a project, on a real Label Studio ---


@pytest.fixture
def project(label_studio: RunningLabelStudio, backend: RecordingBackend) -> int:
    """Connected, as it should be."""
    project = label_studio.create_project("checkup", CONFIG)
    join(label_studio.client(), project, backend)
    return project


@pytest.mark.label_studio
def test_a_connected_project_has_nothing_wrong(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    findings = checks(client, project, backend.url, auth=AUTH, version="untrained")
    assert [finding for finding in findings if not finding.ok] == []
    assert [finding.code for finding in findings] == [
        "label_studio",
        "token",
        "project",
        "label_config",
        "backend",
        "state",
        "title",
        "webhook",
        "prelabels",
        "model_version",
        "sampling",
        "tab",
    ]


@pytest.mark.label_studio
def test_a_project_that_nobody_connected(
    label_studio: RunningLabelStudio, client: LabelStudio, backend: RecordingBackend
) -> None:
    project = label_studio.create_project("alone", CONFIG)
    found = wrong(checks(client, project, backend.url))
    assert set(found) == {"backend", "webhook", "sampling", "tab"}
    assert "hrn connect" in found["backend"].fix
    assert "ML_BLOCK_LOCAL_IP=false" in found["backend"].fix  # 127.0.0.1 is such an address


@pytest.mark.label_studio
def test_a_project_that_is_not_there(client: LabelStudio) -> None:
    found = wrong(checks(client, 10**6, "http://backend.invalid"))
    assert "no project 1000000" in found["request"].what


@pytest.mark.label_studio
def test_labels_that_are_no_tree(label_studio: RunningLabelStudio, client: LabelStudio) -> None:
    config = '<View><Image name="image" value="$image"/><TextArea name="t" toName="image"/></View>'
    project = label_studio.create_project("no tree", config)
    assert "label_config" in wrong(checks(client, project, "http://backend.invalid"))


@pytest.mark.label_studio
def test_a_backend_that_has_stopped(client: LabelStudio, label_studio: RunningLabelStudio) -> None:
    with running_backend() as stopped:
        project = label_studio.create_project("stopped", CONFIG)
        join(client, project, stopped)
    found = wrong(checks(client, project, stopped.url, auth=AUTH, version="untrained"))
    assert set(found) == {"state"}
    assert "health check failed" in found["state"].what


@pytest.mark.label_studio
def test_a_backend_with_another_password(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    backend.password = "Basic other"
    found = wrong(checks(client, project, backend.url, auth=BasicAuth(USER, "other")))
    assert set(found) == {"state", "webhook"}
    assert "another password" in found["webhook"].what


@pytest.mark.label_studio
def test_a_title_that_is_not_the_version(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """Found against the version we name, and against what the backend answers."""
    assert set(wrong(checks(client, project, backend.url, version="v1"))) == {"title"}
    backend.version = "v2"
    assert "'v2'" in wrong(checks(client, project, backend.url))["title"].what


@pytest.mark.label_studio
def test_a_webhook_without_password(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    (hook,) = client.webhooks(project)
    client.update_webhook(hook["id"], url=hook["url"], actions=["PROJECT_UPDATED"], headers={})
    found = wrong(checks(client, project, backend.url))
    assert set(found) == {"webhook"}
    assert "carries no password" in found["webhook"].what
    assert "not sent for ANNOTATION_CREATED" in found["webhook"].what


@pytest.mark.label_studio
def test_a_second_webhook(client: LabelStudio, project: int, backend: RecordingBackend) -> None:
    url = client.webhooks(project)[0]["url"]
    client.create_webhook(project, url=url, actions=ACTIONS, headers={})
    found = wrong(checks(client, project, backend.url))
    assert "there are 2 of them" in found["webhook"].what


@pytest.mark.label_studio
def test_switches_set_by_hand(client: LabelStudio, project: int, backend: RecordingBackend) -> None:
    fields = {
        "show_collab_predictions": False,
        "sampling": "Uniform sampling",
        "start_training_on_annotation_update": True,
        "evaluate_predictions_automatically": True,
    }
    client.update_project(project, fields)
    findings = checks(client, project, backend.url)
    assert set(wrong(findings)) == {"prelabels", "model_version", "sampling", "remark"}
    assert sum(finding.code == "remark" for finding in findings) == 2


@pytest.mark.label_studio
def test_a_private_address_that_label_studio_does_not_call(
    label_studio: RunningLabelStudio,
    backend: RecordingBackend,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """With half of the protection off it keeps the backend, but makes no webhook."""
    settings = {"SSRF_PROTECTION_ENABLED": "true"}
    folder = tmp_path_factory.mktemp("label-studio-half-open")
    half_open = RunningLabelStudio(folder, settings, like=label_studio.beginning)
    try:
        half_open.wait_until_ready()
        client = half_open.client()
        project = half_open.create_project("private", CONFIG)
        with pytest.raises(StudioRequestError, match="SSRF_PROTECTION_ENABLED=false"):
            join(client, project, backend)
        found = wrong(checks(client, project, backend.url))
    finally:
        half_open.stop()
    assert "backend" not in found
    assert "SSRF_PROTECTION_ENABLED=false" in found["webhook"].fix
