"""What is wrong and how to fix it: this machine, then each project in Label Studio."""

import base64
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from requests.utils import get_environ_proxies, select_proxy

from inference.errors import EarlierReleaseError, ModelError, ModelStoreError
from inference.predictor import check_runs
from inference.store import CONNECTED, GONE, UNCONFIRMED, Project
from studio.client import BasicAuth
from studio.errors import ImageError, StudioError
from studio.label_config import LabelConfig, parse_label_config
from studio.project_checks import Finding, checks
from studio.tls import CERTIFICATE_HELP
from worker.errors import MisconfiguredError, redis_in_words
from worker.identity import is_ours
from worker.order import RunState
from worker.parts import Parts
from worker.presence import sentence
from worker.queue import RedisError
from worker.snapshot import counted

#: Free bytes below which a training may fail to publish.
LITTLE_SPACE = 1e9

#: Images of a project that are fetched and decoded.
TRIED: Final = 3

#: Ways in which a training ends that somebody should do something about.
_ENDED_BADLY: Final = frozenset(
    {RunState.FAILED, RunState.POSTPONED, RunState.MISCONFIGURED, RunState.DIED}
)


def examine(parts: Parts, only: int | None = None) -> list[Finding]:
    """Look at everything, this machine first, then each project in Label Studio.

    Args:
        parts: built from the settings in question.
        only: one project's number; None for all that have called.
    """
    found = examine_projects(parts, only)
    known = [number for number, one in found if number and one.code == "project" and one.ok]
    found += [(number, one) for number in known for one in examine_data(parts, number)]
    several = len({number for number, _ in found} - {None}) > 1
    findings = [
        replace(one, what=f"project {number}: {one.what}") if several and number else one
        for number, one in found
    ]
    return [*examine_machine(parts), *findings]


def examine_machine(parts: Parts) -> list[Finding]:
    """Store, Redis, workers, device, backbone, and the address that Label Studio is given."""
    machine = [*_store(parts), *_redis(parts), *_device(parts), _backbone(parts)]
    return [*machine, _address(parts), *_proxies(parts)]


def examine_projects(parts: Parts, only: int | None = None) -> list[tuple[int | None, Finding]]:
    """Look at Label Studio; return findings, with the project's number if about one.

    Args:
        parts: built from the settings in question.
        only: one project's number; None for all that have called.
    """
    return list(_label_studio(parts, only))


def _store(parts: Parts) -> Iterator[Finding]:
    where = parts.store.files.where
    try:
        parts.store.check_writable()
    except ModelStoreError as error:
        fix = f"make {where} writable for this user, or set HRN_HOME or HRN_STORE to one that is"
        yield Finding("store", ok=False, what=str(error), fix=fix)
        return
    yield Finding("store", ok=True, what=f"the model store at {where} can be written")
    home = parts.settings.home if parts.settings.in_bucket else parts.settings.store
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < LITTLE_SPACE:
        yield Finding("disk", ok=False, what=f"{free / 1e9:.1f} GB free at {home}", fix="make room")


def _redis(parts: Parts) -> Iterator[Finding]:
    try:
        parts.board.redis.ping()
        workers = parts.board.workers()
        waiting = parts.board.depth()
    except (RedisError, MisconfiguredError) as error:
        fix = "start Redis, correct REDIS_URL, or use `hrn up`, which brings one"
        what = f"Redis cannot be reached: {redis_in_words(error)}"
        yield Finding("redis", ok=False, what=what, fix=fix)
        return
    yield Finding("redis", ok=True, what="Redis answers")
    if workers:
        yield Finding("worker", ok=True, what=f"{len(workers)} worker(s), {waiting} job(s) waiting")
    else:
        what = f"no worker runs, {waiting} job(s) waiting: nothing will be trained"
        yield Finding("worker", ok=False, what=what, fix="start one with `hrn work`")


def _device(parts: Parts) -> Iterator[Finding]:
    import torch

    there, asked = torch.cuda.is_available(), parts.settings.device
    if asked == "cuda" and not there:
        what = "HRN_DEVICE=cuda, but PyTorch sees no GPU"
        fix = "install a driver (nvidia-smi must work), or set HRN_DEVICE=auto"
        yield Finding("device", ok=False, what=what, fix=fix)
    else:
        name = torch.cuda.get_device_name(0) if there and asked != "cpu" else "the CPU"
        yield Finding("device", ok=True, what=f"computing on {name}")


def _backbone(parts: Parts) -> Finding:
    try:
        found = parts.extractors.backbones()
    except ModelError as error:
        fix = (
            "set HRN_BACKBONE to networks that are here, or HRN_BACKBONE_WEIGHTS to their files,"
            f" joined by {os.pathsep!r}"
        )
        return Finding("backbone", ok=False, what=str(error), fix=fix)
    names = " + ".join(one.fingerprint for one in found)
    return Finding("backbone", ok=True, what=f"backbone {names}")


def _address(parts: Parts) -> Finding:
    """Check that our own address, as Label Studio is given it, leads to us."""
    settings = parts.settings
    if not settings.backend_url:
        fix = "set HRN_BACKEND_URL to the address at which Label Studio reaches this backend"
        return Finding("address", ok=False, what="HRN_BACKEND_URL is not set", fix=fix)
    token = base64.b64encode(f"{settings.user}:{settings.password.reveal()}".encode()).decode()
    headers = {"Authorization": f"Basic {token}"} if settings.password else {}
    request = urllib.request.Request(f"{settings.backend_url}/health", headers=headers)  # noqa: S310 - our own setting, http(s) only
    # Never through a proxy: whether this machine is reached is the question.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=parts.trust)
    )
    try:
        with opener.open(request, timeout=5):
            return Finding(
                "address", ok=True, what=f"the backend answers at {settings.backend_url}"
            )
    except urllib.error.HTTPError as error:
        what = f"{settings.backend_url} answers {error.code}"
        fix = "HRN_USER and HRN_PASSWORD differ between this command and the server"
        return Finding("address", ok=False, what=what, fix=fix)
    except OSError as error:
        what = f"nothing answers at {settings.backend_url} from here ({error})"
        fix = "start the server (`hrn serve`), or correct HRN_BACKEND_URL"
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            fix = CERTIFICATE_HELP
        return Finding("address", ok=False, what=what, fix=fix)


def _proxies(parts: Parts) -> Iterator[Finding]:
    """Tell which way requests go, where variables name proxies."""
    known = urllib.request.getproxies_environment()
    names = [f"{name.upper()}_PROXY" for name in ("http", "https", "all") if name in known]
    if not names:
        return
    url = parts.settings.label_studio_url
    way = "through it" if select_proxy(url, get_environ_proxies(url)) else "without it"
    what = (
        f"{' and '.join(names)} is set: Label Studio is asked {way}; images are always fetched"
        " without it, since a proxy would look their hosts up out of sight of our checks"
    )
    yield Finding("proxy", ok=True, what=what)


def _label_studio(parts: Parts, only: int | None) -> Iterator[tuple[int | None, Finding]]:
    settings = parts.settings
    for name, value in (
        ("LABEL_STUDIO_URL", settings.label_studio_url),
        ("LABEL_STUDIO_API_KEY", settings.label_studio_token),
    ):
        if not value:
            fix = f"set {name}: without it no label can be read (Label Studio, Account & Settings)"
            yield None, Finding("label-studio", ok=False, what=f"{name} is not set", fix=fix)
            return
    try:
        client = parts.studio
    except MisconfiguredError as error:
        fix = "correct the one that is named; the token is copied from Account & Settings there"
        yield None, Finding("token", ok=False, what=str(error), fix=fix)
        return
    ours = settings.label_studio_url
    known = [project for project in parts.store.projects() if is_ours(project, ours)]
    numbers = [only] if only is not None else sorted({project.number for project in known})
    if not numbers:
        yield None, _reachable(parts)
        fix = "run `hrn connect --project NUMBER`"
        what = "no project has called this backend yet"
        yield None, Finding("project", ok=False, what=what, fix=fix)
    auth = BasicAuth(settings.user, settings.password.reveal()) if settings.password else None
    url = settings.backend_url or "http://unset"
    for number in numbers:
        records = [project for project in known if project.number == number]
        if only is None and (left := _left(parts, records)):
            yield number, Finding("left", ok=True, what=left)
            continue
        names = set().union(*(parts.store.names(project.key) for project in records))
        for found in checks(client, number, url, auth=auth, ours=names):
            yield number, found


def _left(parts: Parts, records: Sequence[Project]) -> str:
    """Describe a project that an admin took away, which is nothing wrong; "" for others."""
    if any(project.state in (CONNECTED, UNCONFIRMED) for project in records):
        return ""
    for project in records:
        with suppress(RedisError, MisconfiguredError):
            heard = parts.board.events(project.key)[1]
            if project.state == GONE and heard is not None and heard > project.since:
                return ""  # it sends events: it is there, and this account does not see it
    return "; ".join(sentence(project) for project in records)


def _reachable(parts: Parts) -> Finding:
    try:
        who = parts.studio.whoami()
    except StudioError as error:
        fix = "correct LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
        return Finding("label-studio", ok=False, what=str(error), fix=fix)
    what = f"Label Studio {parts.studio.version()} answers, signed in as {who.get('email')}"
    return Finding("label-studio", ok=True, what=what)


# Images, trainings and labels of a project


def examine_data(parts: Parts, number: int) -> Iterator[Finding]:
    """Fetch three images of a project and repeat what is known of its labels and trainings.

    Args:
        parts: built from the settings in question.
        number: the project's, which Label Studio knows.
    """
    try:
        yield from _images(parts, number)
    except StudioError as error:
        fix = "see to it that Label Studio answers, then run `hrn doctor` again"
        yield Finding("images", ok=False, what=f"No image could be tried: {error}", fix=fix)
    url = parts.settings.label_studio_url
    for project in parts.store.projects():
        if project.number == number and is_ours(project, url):
            yield from _last_run(parts, project.key)
            yield from _learnt_labels(parts, project.key)


def _images(parts: Parts, number: int) -> Iterator[Finding]:
    config = parse_label_config(str(parts.studio.settings(number)["label_config"]))
    tasks = list(islice(parts.studio.tasks(number, page_size=TRIED), TRIED))
    if not tasks:
        return
    with ThreadPoolExecutor(TRIED) as pool:
        reasons = list(pool.map(lambda task: _refusal(parts, config, task), tasks))
    bad = [f"task {task['id']}: {why}" for task, why in zip(tasks, reasons, strict=True) if why]
    if not bad:
        yield Finding("images", ok=True, what=f"{len(tasks)} images of its tasks can be read")
        return
    what = f"{len(bad)} of {len(tasks)} images that were tried cannot be read. {'. '.join(bad)}"
    fix = "do what the reason says; nothing is learnt from such an image, nor pre-labelled"
    yield Finding("images", ok=False, what=what, fix=fix)


def _refusal(parts: Parts, config: LabelConfig, task: dict[str, Any]) -> str:
    """Return why the task's image cannot be read, "" if it can."""
    ref = config.image_address(task.get("data") or {})
    if ref is None:
        return f"its data has no image address in {config.image_key!r}"
    try:
        file = parts.fetcher.fetch(ref, task_id=int(task["id"]))
        parts.decoders.decode(file.data, limits=parts.limits, at_least=1)
    except ImageError as error:
        return error.reason
    return ""


def _last_run(parts: Parts, key: str) -> Iterator[Finding]:
    try:
        runs = parts.board.runs(key)
    except (RedisError, MisconfiguredError):  # another finding says so
        return
    if not runs:
        return
    state, why, figures = runs[0]["state"], runs[0]["why"], runs[0].get("figures") or {}
    # A project that has too few labels yet is as it should be, unless there are some that do not
    # count.
    ok = state not in _ENDED_BADLY and not figures.get("passed_over")
    fix = "" if ok else "do what the reason says, then run `hrn train`"
    yield Finding("training", ok=ok, what=f"The last training: {state} ({why})", fix=fix)


def _learnt_labels(parts: Parts, key: str) -> Iterator[Finding]:
    version = parts.store.current(key)
    if version is None:
        return
    try:
        manifest = parts.store.manifest(key, version)
        labels = manifest.labels
        check_runs(manifest, version)
    except EarlierReleaseError as error:
        fix = "wait for the training that the worker was asked for, or run `hrn train`"
        yield Finding("version", ok=False, what=str(error), fix=fix)
        return
    except ModelError:  # routes and `/ready` say so
        return
    what = f"{version} learnt from {labels['labels']} labels"
    if passed := {**labels.get("ignored", {}), **labels.get("skipped", {})}:
        what += f"; passed over: {counted(passed)}"
    yield Finding("labels", ok=True, what=what)
