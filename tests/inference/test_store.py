"""Versions are complete or not there, the pointer moves in one step, and names stay names."""

import json
import multiprocessing
import os
import shutil
import signal
import stat
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ModelStoreError, UnknownVersionError, VersionInUseError
from inference.manifest import Manifest
from inference.store import KEY, NOTE_LENGTH, ModelStore, Project, project_key

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1], dtype=torch.int64)}

HOSTILE = [
    "../x",
    "v1/../../etc",
    "..",
    ".",
    "",
    "v1/",
    "/etc/passwd",
    "v1\n",
    "v1\0",
    "V1",
    "v",
    "v-1",
    "v1.2",
    "v٣",
    "v1234567890",
]

#: Spawned, not forked: a fork would take torch's threads along, half of them.
PROCESSES = multiprocessing.get_context("spawn")


def project(key: str = "localhost-8080-1-17") -> Project:
    return Project(key, 1, "1.17", "http://localhost:8080", "<View/>", title="Groceries")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    found = ModelStore(tmp_path / "models")
    found.save_project(project())
    return found


KEY_OF = project().key


def publish(store: ModelStore, **more: Any) -> str:
    return store.publish(KEY_OF, Manifest(**more), WEIGHTS)


def folder(store: ModelStore) -> Path:
    return store.root / "projects" / KEY_OF


# Versions


def test_a_version_comes_back_as_it_was_published(store: ModelStore) -> None:
    name = publish(store, metrics={"levels": [1, None], "title": "Äpfel"})
    manifest, weights = store.manifest(KEY_OF, name), store.weights(KEY_OF, name)
    assert manifest.version == name == "v1"
    assert manifest.metrics == {"levels": [1, None], "title": "Äpfel"}
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[key], value) for key, value in WEIGHTS.items())
    assert all(weights[key].dtype == value.dtype for key, value in WEIGHTS.items())


def test_tensors_that_share_memory_or_are_turned_can_be_published(store: ModelStore) -> None:
    turned = WEIGHTS["a"].t()
    name = store.publish(KEY_OF, Manifest(), {"turned": turned, "part": turned[:, :1]})
    weights = store.weights(KEY_OF, name)
    assert torch.equal(weights["turned"], turned)
    assert torch.equal(weights["part"], turned[:, :1])


def test_versions_count_up_and_sort_as_numbers(store: ModelStore) -> None:
    names = [publish(store) for _ in range(11)]
    assert names == [f"v{number}" for number in range(1, 12)]
    assert store.versions(KEY_OF) == names


def test_a_name_that_was_given_up_in_the_middle_is_not_used_again(store: ModelStore) -> None:
    publish(store)
    publish(store)
    (folder(store) / "versions" / "v1" / "manifest.json").unlink()
    assert store.versions(KEY_OF) == ["v2"]
    assert publish(store) == "v3"


def test_an_untrained_project_has_nothing(store: ModelStore) -> None:
    assert store.versions(KEY_OF) == []
    assert store.current(KEY_OF) is None
    assert store.history(KEY_OF) == []
    assert store.previous(KEY_OF) is None


def publish_many(root: Path, count: int, ready: Any, done: Any) -> None:
    store = ModelStore(root)
    ready.wait(60)
    done.put([publish(store, project=str(os.getpid())) for _ in range(count)])


def test_two_processes_that_publish_at_once_get_names_of_their_own(store: ModelStore) -> None:
    ready, done = PROCESSES.Barrier(2), PROCESSES.Queue()
    workers = [
        PROCESSES.Process(target=publish_many, args=(store.root, 15, ready, done)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    named = [done.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert sorted(named[0] + named[1], key=lambda name: int(name[1:])) == store.versions(KEY_OF)
    assert len(store.versions(KEY_OF)) == 30
    for names in named:  # each is the one that its process wrote
        assert len({store.manifest(KEY_OF, name).project for name in names}) == 1
    assert not list((folder(store) / "versions").glob(".*"))


def publish_and_die(root: Path) -> None:
    """Killed at the last moment: everything is written, nothing is renamed."""

    class Doomed(ModelStore):
        def _taken(self, key: str) -> Any:
            yield from super()._taken(key)
            original = Path.rename

            def killed(path: Path, target: Path) -> Path:
                os.kill(os.getpid(), signal.SIGKILL)
                return original(path, target)

            Path.rename = killed  # type: ignore[assignment, method-assign]

    publish(Doomed(root))


def test_a_kill_before_the_rename_leaves_nothing_to_see(store: ModelStore) -> None:
    publish(store)
    victim = PROCESSES.Process(target=publish_and_die, args=(store.root,))
    victim.start()
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL
    [left] = (folder(store) / "versions").glob(".new-*")
    assert {file.name for file in left.iterdir()} == {"manifest.json", "weights.safetensors"}
    assert store.versions(KEY_OF) == ["v1"]
    assert publish(store) == "v2"


def test_other_users_of_the_disk_can_read_what_is_published(store: ModelStore) -> None:
    """Server and worker may run as two users; the umask decides, not the store."""
    before = os.umask(0o022)
    try:
        name = publish(store)
        store.point(KEY_OF, name, reason="test")
    finally:
        os.umask(before)
    version = folder(store) / "versions" / name
    assert stat.S_IMODE(version.stat().st_mode) == 0o755
    for file in (*version.iterdir(), folder(store) / "current.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_changed_weights_are_refused(store: ModelStore) -> None:
    name = publish(store)
    file = folder(store) / "versions" / name / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ModelStoreError, match=r"not those published.*restore the file or roll back"
    ):
        store.weights(KEY_OF, name)


def test_lost_weights_are_told_with_the_reason(store: ModelStore) -> None:
    name = publish(store)
    (folder(store) / "versions" / name / "weights.safetensors").unlink()
    with pytest.raises(ModelStoreError, match="cannot read the weights of v1: No such file"):
        store.weights(KEY_OF, name)


def rewrite(store: ModelStore, name: str, **changes: Any) -> None:
    """As a release before the manifest's own checksum would have written it."""
    file = folder(store) / "versions" / name / "manifest.json"
    told = json.loads(file.read_text()) | changes
    del told["manifest_sha256"]
    file.write_text(json.dumps(told))


def test_a_manifest_without_its_checksum_is_refused(store: ModelStore) -> None:
    name = publish(store)
    rewrite(store, name, weights_sha256=None)
    with pytest.raises(ModelStoreError, match="not those published"):
        store.weights(KEY_OF, name)


@pytest.mark.parametrize(
    "edit",
    [
        lambda told: told["metrics"].update(title="better"),
        lambda told: told.update(trained_through="2099-01-01"),
        lambda told: told.update(weights_bytes=told["weights_bytes"] + 1),
        lambda told: told.update(extra=1),
        lambda told: told.pop("metrics"),
        lambda told: told.update(manifest_sha256="0" * 64),
    ],
)
def test_a_manifest_edited_by_hand_is_refused_with_the_reason(
    store: ModelStore, edit: Callable[[dict[str, Any]], object]
) -> None:
    name = publish(store, metrics={"title": "worse"}, trained_through="2026")
    file = folder(store) / "versions" / name / "manifest.json"
    told = json.loads(file.read_bytes())
    edit(told)
    file.write_text(json.dumps(told), encoding="utf-8")
    for read in (store.manifest, store.weights):
        with pytest.raises(ModelStoreError, match=r"manifest of v1 .* edited or damaged"):
            read(KEY_OF, name)


def test_a_manifest_may_be_laid_out_anew(store: ModelStore) -> None:
    """The checksum is of what it says, not of its spaces."""
    name = publish(store)
    file = folder(store) / "versions" / name / "manifest.json"
    before = store.manifest(KEY_OF, name)
    told = json.loads(file.read_bytes())
    file.write_text(json.dumps(told, indent=7, sort_keys=True), encoding="utf-8")
    assert store.manifest(KEY_OF, name) == before


def test_a_manifest_from_before_the_checksum_is_read(store: ModelStore) -> None:
    name = publish(store)
    file = folder(store) / "versions" / name / "manifest.json"
    before, told = store.manifest(KEY_OF, name), json.loads(file.read_bytes())
    del told["manifest_sha256"]
    file.write_text(json.dumps(told), encoding="utf-8")
    assert store.manifest(KEY_OF, name) == before


def test_a_version_under_another_s_name_is_refused(store: ModelStore) -> None:
    first, second = publish(store), publish(store)
    versions = folder(store) / "versions"
    shutil.rmtree(versions / second)
    shutil.copytree(versions / first, versions / second)
    with pytest.raises(ModelStoreError, match="manifest of v2 is that of 'v1'"):
        store.manifest(KEY_OF, second)


@pytest.mark.parametrize("known", [2, 0, "1", None])
def test_a_format_of_another_release_is_refused(store: ModelStore, known: Any) -> None:
    name = publish(store)
    rewrite(store, name, format=known)
    with pytest.raises(ModelStoreError, match=r"manifest format .*, this release reads 1"):
        store.manifest(KEY_OF, name)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_damaged_manifest_is_an_error_of_the_store(store: ModelStore, text: str) -> None:
    name = publish(store)
    (folder(store) / "versions" / name / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelStoreError, match=r"v1/manifest\.json"):
        store.manifest(KEY_OF, name)


def test_an_unknown_version_is_told_as_such(store: ModelStore) -> None:
    with pytest.raises(UnknownVersionError, match="does not exist"):
        store.manifest(KEY_OF, "v9")


@pytest.mark.parametrize("name", HOSTILE)
def test_version_names_cannot_leave_the_folder(store: ModelStore, name: str) -> None:
    """A complete version lies where each of them would lead."""
    publish(store)
    for call in (store.manifest, store.weights):
        with pytest.raises(UnknownVersionError, match="is not a version name"):
            call(KEY_OF, name)
    with pytest.raises(UnknownVersionError):
        store.point(KEY_OF, name, reason="test")
    assert store.current(KEY_OF) is None


@pytest.mark.parametrize("key", ["../x", "a/../../b", "", ".", "..", "A", "/etc", "a\n", "x" * 200])
def test_project_keys_cannot_leave_the_folder(store: ModelStore, key: str) -> None:
    calls = (store.project, store.versions, store.current, store.history)
    for call in calls:
        with pytest.raises(ModelStoreError, match="is not a project key"):
            call(key)
    with pytest.raises(ModelStoreError, match="is not a project key"):
        store.save_project(project(key))


# The pointer


def live(store: ModelStore, *names: str) -> None:
    for name in names:
        store.point(KEY_OF, name, reason=f"to {name}")


def test_pointing_makes_a_version_live_for_every_reader(store: ModelStore) -> None:
    live(store, publish(store))
    assert ModelStore(store.root).current(KEY_OF) == "v1"


def test_history_tells_every_move_with_its_reason(store: ModelStore) -> None:
    live(store, publish(store), publish(store))
    moves = [(move["from"], move["to"], move["reason"]) for move in store.history(KEY_OF)]
    assert moves == [(None, "v1", "to v1"), ("v1", "v2", "to v2")]


def test_going_back_again_goes_further_back(store: ModelStore) -> None:
    live(store, publish(store), publish(store), publish(store))
    assert store.previous(KEY_OF) == "v2"
    live(store, "v2")
    assert store.previous(KEY_OF) == "v1"
    live(store, "v1")
    assert store.previous(KEY_OF) is None


def test_what_was_rolled_back_is_not_gone_back_to(store: ModelStore) -> None:
    live(store, publish(store), publish(store), "v1", publish(store))
    assert store.previous(KEY_OF) == "v1"


def test_pointing_twice_at_a_version_is_one_stop(store: ModelStore) -> None:
    live(store, publish(store), publish(store), "v2")
    assert store.previous(KEY_OF) == "v1"


def test_a_version_that_is_gone_is_passed_over(store: ModelStore) -> None:
    live(store, publish(store), publish(store), publish(store))
    (folder(store) / "versions" / "v2" / "manifest.json").unlink()
    assert store.previous(KEY_OF) == "v1"


def test_a_version_that_cannot_run_here_is_not_rolled_back_to(store: ModelStore) -> None:
    earlier = {"kind": "frozen", "channels": 1280}
    live(store, publish(store), publish(store, network=earlier), publish(store))
    assert store.previous(KEY_OF) == "v1"


def test_an_incomplete_version_cannot_go_live(store: ModelStore) -> None:
    live(store, publish(store))
    (folder(store) / "versions" / "v2").mkdir()
    with pytest.raises(UnknownVersionError):
        store.point(KEY_OF, "v2", reason="test")
    assert store.current(KEY_OF) == "v1"
    assert len(store.history(KEY_OF)) == 1


def test_a_history_line_cut_short_costs_itself_only(store: ModelStore) -> None:
    live(store, publish(store), publish(store))
    file = folder(store) / "history.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    live(store, publish(store))
    assert [move["to"] for move in store.history(KEY_OF)] == ["v1", "v3"]
    assert store.previous(KEY_OF) == "v1"


@pytest.mark.parametrize("text", ['{"version": "../../x"}', '{"version": 3}', "{}"])
def test_a_pointer_that_names_no_version_points_nowhere(store: ModelStore, text: str) -> None:
    (folder(store) / "current.json").write_text(text)
    assert store.current(KEY_OF) is None


# Projects


def test_a_project_comes_back_as_it_was_saved(store: ModelStore) -> None:
    full = replace(
        project(), target_accuracy=0.95, minimum_depth=2, maximum_depth=3, pinned=True, title="日本"
    )
    store.save_project(full)
    assert store.project(full.key) == full
    assert store.projects() == [full]


def test_registering_again_keeps_what_people_set(store: ModelStore) -> None:
    store.save_project(replace(project(), target_accuracy=0.95, pinned=True))
    found = store.register(replace(project(), label_config="<View>new</View>", title=""))
    assert (found.target_accuracy, found.pinned, found.title) == (0.95, True, "Groceries")
    assert store.project(KEY_OF) == found
    assert found.label_config == "<View>new</View>"


def test_registering_what_is_known_writes_nothing(store: ModelStore) -> None:
    file = folder(store) / "project.json"
    before = file.stat()
    store.register(project())
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_record_of_a_newer_release_is_read(store: ModelStore) -> None:
    file = folder(store) / "project.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": "blue"}))
    assert store.project(KEY_OF) == project()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": "a"}'])
def test_unreadable_records_are_logged_and_left_out(
    store: ModelStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = store.root / "projects" / "broken"
    broken.mkdir()
    (broken / "project.json").write_text(text)
    assert store.projects() == [project()]
    assert "broken" in caplog.text
    with pytest.raises(ModelStoreError, match="broken"):
        store.project("broken")


def test_an_empty_store_has_no_projects(tmp_path: Path) -> None:
    assert ModelStore(tmp_path / "nowhere").projects() == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A file where the folder should be: as good as a read-only disk, for any user."""
    (tmp_path / "models").write_text("")
    store = ModelStore(tmp_path / "models")
    for call in (store.check_writable, lambda: store.save_project(project())):
        with pytest.raises(ModelStoreError, match=r"cannot write to the model store at .*models"):
            call()


def test_publishing_where_nothing_can_be_written_leaves_the_reason(store: ModelStore) -> None:
    (folder(store) / "versions").write_text("")
    with pytest.raises(ModelStoreError, match=r"cannot write .*: (Not a directory|File exists)"):
        publish(store)


def test_checking_leaves_nothing_behind(store: ModelStore) -> None:
    before = sorted(store.root.rglob("*"))
    store.check_writable()
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("address", "number", "expected"),
    [
        ("http://localhost:8080/", "12.1795440233", "localhost-8080-12-1795440233"),
        ("localhost:8080", "12.1795440233", "localhost-8080-12-1795440233"),
        ("https://Labels.Example.org/studio/", "3.5", "labels-example-org-studio-3-5"),
        ("http://user:secret@host:80", "3.5", "host-80-3-5"),
        ("http://[::1]:8080", "3.5", "1-8080-3-5"),
    ],
)
def test_project_keys_by_example(address: str, number: str, expected: str) -> None:
    assert project_key(address, number) == expected


def test_long_addresses_keep_projects_apart() -> None:
    keys = {project_key(f"http://{'a.' * 100}example", f"{n}.1795440233") for n in range(3)}
    assert len(keys) == 3


@given(st.from_regex(r"https?://[a-z0-9.:/@-]{1,150}", fullmatch=True), st.integers(0, 10**12))
def test_every_address_gives_a_legal_key(address: str, number: int) -> None:
    try:
        key = project_key(address, f"{number}.1795440233")
    except ValueError:  # no address at all, such as http://[
        return
    assert KEY.fullmatch(key)
    assert key.endswith(f"{number}-1795440233")


def test_a_damaged_pointer_is_mended_by_pointing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    version = store.publish("studio-1-1", Manifest(), {"weight": torch.zeros(1)})
    store.point("studio-1-1", version, reason="first")
    (tmp_path / "projects" / "studio-1-1" / "current.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelStoreError):
        store.current("studio-1-1")
    store.point("studio-1-1", version, reason="again")
    assert store.current("studio-1-1") == version


def test_leftovers_of_killed_publishers_go_after_a_day(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish("studio-1-1", Manifest(), {"weight": torch.zeros(1)})
    folder = tmp_path / "projects" / "studio-1-1" / "versions"
    old, fresh = folder / ".new-old", folder / ".new-fresh"
    old.mkdir()
    fresh.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    store.publish("studio-1-1", Manifest(), {"weight": torch.zeros(1)})
    assert not old.exists()
    assert fresh.exists()


# What is kept beside a version


def kept_file(store: ModelStore, version: str = "v1") -> Path:
    return folder(store) / "following" / f"{version}.json"


def contents(store: ModelStore, version: str) -> dict[str, bytes]:
    files = (folder(store) / "versions" / version).iterdir()
    return {path.name: path.read_bytes() for path in files}


def test_what_is_kept_beside_a_version_comes_back_and_leaves_the_version_alone(
    store: ModelStore,
) -> None:
    version = publish(store)
    before = contents(store, version)
    assert store.read_following(KEY_OF, version) is None
    assert store.following_stamp(KEY_OF, version) is None
    store.write_following(KEY_OF, version, {"rows": [1, 0.25], "why": "Äpfel"})
    assert store.read_following(KEY_OF, version) == {"rows": [1, 0.25], "why": "Äpfel"}
    first = store.following_stamp(KEY_OF, version)
    store.write_following(KEY_OF, version, {"rows": [], "why": ""})
    assert store.read_following(KEY_OF, version) == {"rows": [], "why": ""}
    assert None is not first != store.following_stamp(KEY_OF, version)
    assert contents(store, version) == before


@pytest.mark.parametrize("name", [*HOSTILE, "v2"])
def test_nothing_is_kept_beside_what_is_no_version(store: ModelStore, name: str) -> None:
    publish(store)
    with pytest.raises(UnknownVersionError):
        store.write_following(KEY_OF, name, {})
    assert not list(store.root.rglob("following/*"))


def test_what_was_damaged_is_told_and_can_be_written_anew(store: ModelStore) -> None:
    publish(store)
    store.write_following(KEY_OF, "v1", {"rows": [1, 2, 3]})
    whole = kept_file(store).read_bytes()
    for damaged in (whole[:-9], whole.replace(b"1, 2", b"1, 4"), b"[]", b'{"format": 99}'):
        kept_file(store).write_bytes(damaged)
        with pytest.raises(ModelStoreError):
            store.read_following(KEY_OF, "v1")
    store.write_following(KEY_OF, "v1", {"rows": []})
    assert store.read_following(KEY_OF, "v1") == {"rows": []}


def test_what_was_kept_goes_with_its_version(store: ModelStore) -> None:
    for name in (publish(store), publish(store), publish(store)):
        store.write_following(KEY_OF, name, {"of": name})
    shutil.rmtree(folder(store) / "versions" / "v1")
    shutil.rmtree(folder(store) / "versions" / "v3")
    with pytest.raises(UnknownVersionError):
        store.read_following(KEY_OF, "v1")
    again = store.publish(KEY_OF, Manifest(), {"a": torch.zeros(2)})
    assert again == "v3"
    assert store.read_following(KEY_OF, "v3") is None  # kept for another version of that name
    store.write_following(KEY_OF, "v2", {"of": "v2"})
    assert sorted(path.name for path in (folder(store) / "following").iterdir()) == [
        "v2.json",
        "v3.json",
    ]


def test_a_store_that_cannot_be_written_keeps_what_was_kept(store: ModelStore) -> None:
    publish(store)
    store.write_following(KEY_OF, "v1", {"rows": []})
    before = kept_file(store).read_bytes()
    target = kept_file(store).parent
    target.rename(target.with_name("elsewhere"))
    target.write_text("a file where the folder should be")
    with pytest.raises(ModelStoreError, match="cannot write to the model store"):
        store.write_following(KEY_OF, "v1", {"rows": [1]})
    target.unlink()
    target.with_name("elsewhere").rename(target)
    assert kept_file(store).read_bytes() == before
    assert [path.name for path in target.iterdir()] == ["v1.json"]


# Deleting


def three(store: ModelStore) -> None:
    """v3 is live and was made from v2, that one from v1."""
    publish(store)
    publish(store, parent="v1")
    publish(store, parent="v2")
    store.point(KEY_OF, "v3", reason="test")


def test_a_version_that_nothing_needs_is_deleted_with_what_stands_beside_it(
    store: ModelStore,
) -> None:
    three(store)
    store.write_note(KEY_OF, "v1", "the first")
    store.write_following(KEY_OF, "v1", {"rows": []})
    store.delete(KEY_OF, "v1")
    assert store.versions(KEY_OF) == ["v2", "v3"]
    assert store.note(KEY_OF, "v1") == ""
    assert store.following_stamp(KEY_OF, "v1") is None
    left = [path.name for path in (folder(store) / "versions" / "v1").iterdir()]
    assert left == ["deleted.json"]
    with pytest.raises(UnknownVersionError):
        store.manifest(KEY_OF, "v1")
    with pytest.raises(UnknownVersionError):
        store.delete(KEY_OF, "v1")


@pytest.mark.parametrize(
    ("version", "why"), [("v3", "is live"), ("v2", "the way back"), ("v9", "does not exist")]
)
def test_what_is_needed_is_not_deleted(store: ModelStore, version: str, why: str) -> None:
    three(store)
    with pytest.raises(ModelStoreError, match=why):
        store.delete(KEY_OF, version)
    assert store.versions(KEY_OF) == ["v1", "v2", "v3"]
    assert store.current(KEY_OF) == "v3"


def test_the_only_version_is_not_deleted_though_it_is_not_live(store: ModelStore) -> None:
    publish(store)
    with pytest.raises(VersionInUseError, match="only version"):
        store.delete(KEY_OF, "v1")


def test_the_name_of_a_deleted_version_is_not_given_again(store: ModelStore) -> None:
    publish(store)
    publish(store)
    store.point(KEY_OF, "v1", reason="test")
    store.delete(KEY_OF, "v2")
    assert publish(store) == "v3"


def test_a_damaged_version_can_be_deleted(store: ModelStore) -> None:
    three(store)
    (folder(store) / "versions" / "v1" / "manifest.json").write_text("{", encoding="utf-8")
    store.delete(KEY_OF, "v1")
    assert store.versions(KEY_OF) == ["v2", "v3"]


def test_going_back_passes_a_deleted_version_over(store: ModelStore) -> None:
    for _ in range(4):
        publish(store)
    for version in ("v1", "v2", "v3"):
        store.point(KEY_OF, version, reason="test")
    store.delete(KEY_OF, "v2")
    assert store.previous(KEY_OF) == "v1"


def promote_and_delete(root: Path, promoting: bool, ready: Any, done: Any) -> None:  # noqa: FBT001
    """Fight over v1, v2, ...: one side makes each live, the other deletes it."""
    store = ModelStore(root)
    lost = 0
    for number in range(1, 31):
        ready.wait(60)
        try:
            if promoting:
                store.point(KEY_OF, f"v{number}", reason="test")
            else:
                store.delete(KEY_OF, f"v{number}")
        except ModelStoreError:
            lost += 1
    done.put(lost)


def test_what_goes_live_while_it_is_deleted_is_never_lost(store: ModelStore) -> None:
    """Of each pair one comes first: the pointer always leads to a version that is there."""
    for _ in range(32):
        publish(store)
    store.point(KEY_OF, "v32", reason="test")
    ready, done = PROCESSES.Barrier(3), PROCESSES.Queue()
    fighters = [
        PROCESSES.Process(target=promote_and_delete, args=(store.root, promoting, ready, done))
        for promoting in (True, False)
    ]
    for fighter in fighters:
        fighter.start()
    for _ in range(30):
        ready.wait(60)
        live = store.current(KEY_OF)
        assert live is not None
        store.manifest(KEY_OF, live)
    # Each version was either promoted in time and kept, or deleted in time and not promoted; one
    # that was live may still be deleted once the next is.
    assert sum(done.get(timeout=60) for _ in fighters) <= 30
    for fighter in fighters:
        fighter.join(60)
    live = store.current(KEY_OF)
    assert live is not None
    assert store.weights(KEY_OF, live).keys() == WEIGHTS.keys()


# Notes


def test_a_note_stands_beside_a_version_that_stays_as_it_is(store: ModelStore) -> None:
    publish(store)
    before = (folder(store) / "versions" / "v1" / "manifest.json").read_bytes()
    assert store.note(KEY_OF, "v1") == ""
    store.write_note(KEY_OF, "v1", "  Gute Äpfel\r\nund Birnen\x00\u202e ")
    assert store.note(KEY_OF, "v1") == "Gute Äpfel\nund Birnen"
    store.write_note(KEY_OF, "v1", "")
    assert store.note(KEY_OF, "v1") == ""
    assert (folder(store) / "versions" / "v1" / "manifest.json").read_bytes() == before


def test_a_long_note_is_cut_and_a_damaged_one_is_none(store: ModelStore) -> None:
    publish(store)
    store.write_note(KEY_OF, "v1", "x" * (NOTE_LENGTH + 5))
    assert len(store.note(KEY_OF, "v1")) == NOTE_LENGTH
    (folder(store) / "notes" / "v1.json").write_text("{", encoding="utf-8")
    assert store.note(KEY_OF, "v1") == ""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_everywhere(store: ModelStore, name: str) -> None:
    publish(store)
    publish(store)
    store.point(KEY_OF, "v2", reason="test")
    for ask in (store.note, store.delete, store.archive):
        with pytest.raises(UnknownVersionError):
            ask(KEY_OF, name)
    with pytest.raises(UnknownVersionError):
        store.write_note(KEY_OF, name, "x")
    assert store.versions(KEY_OF) == ["v1", "v2"]


# Archives


def test_an_archive_holds_the_files_as_they_are(store: ModelStore) -> None:
    publish(store)
    with zipfile.ZipFile(BytesIO(b"".join(store.archive(KEY_OF, "v1")))) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == ["v1/manifest.json", "v1/weights.safetensors"]
        for name in packed.namelist():
            assert packed.read(name) == (folder(store) / "versions" / name).read_bytes()


def test_an_archive_that_was_begun_survives_its_version(store: ModelStore) -> None:
    three(store)
    pieces = store.archive(KEY_OF, "v1")
    store.delete(KEY_OF, "v1")
    with zipfile.ZipFile(BytesIO(b"".join(pieces))) as packed:
        assert packed.testzip() is None


def test_large_weights_are_handed_on_piece_by_piece(store: ModelStore) -> None:
    store.publish(KEY_OF, Manifest(), {"large": torch.zeros(1_500_000)})
    sizes = [len(piece) for piece in store.archive(KEY_OF, "v1")]
    assert sum(sizes) > 6_000_000
    assert max(sizes) < 2_200_000
