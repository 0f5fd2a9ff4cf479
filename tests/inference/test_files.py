"""Files in a folder and in a bucket behave alike; the bucket is on a real server that speaks S3."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from inference import files as module
from inference.backup import backup, restore
from inference.errors import ModelStoreError, UnknownVersionError
from inference.files import BucketFiles, Files, FolderFiles
from inference.store import ModelStore
from tests.buckets import BUCKET, s3
from tests.published import project, publish

Make = Callable[[str], Files]


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    with s3():
        yield


class Locks:
    """What Redis does for those who share a bucket."""

    def __init__(self) -> None:
        self.known: dict[str, threading.Lock] = {}

    def __call__(self, name: str) -> AbstractContextManager[bool]:
        return self.known.setdefault(name, threading.Lock())


@pytest.fixture(params=["folder", "bucket"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens the same place again and again, as several processes would."""
    if request.param == "folder":
        return lambda name: FolderFiles(tmp_path / name)
    request.getfixturevalue("bucket")
    locks = Locks()
    return lambda name: BucketFiles(f"s3://{BUCKET}/{tmp_path.name}/{name}", locks)


@pytest.fixture
def files(make: Make) -> Files:
    return make("store")


def test_what_is_written_is_read_listed_and_removed(files: Files) -> None:
    files.write("a/b/one.json", b"1")
    files.write("a/b/one.json", b"2")
    files.write("a/two.json", b"two")
    assert files.read("a/b/one.json") == b"2"
    assert sorted(files.names("a")) == ["b", "two.json"]
    assert files.walk("a") == ["a/b/one.json", "a/two.json"]
    assert files.exists("a/b/one.json")
    files.remove("a/b/one.json")
    files.remove("a/b/one.json")
    assert not files.exists("a/b/one.json")
    assert files.walk("a") == ["a/two.json"]
    files.remove_folder("a")
    files.remove_folder("a")
    assert files.names("") == []


def test_what_is_not_there_is_told_as_such(files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        files.read("nowhere/one.json")
    assert files.names("nowhere") == files.walk("nowhere") == []
    assert files.stamp("nowhere/one.json") is None


def test_a_stamp_changes_with_what_is_written(files: Files) -> None:
    files.write("one.json", b"1")
    first = files.stamp("one.json")
    assert files.stamp("one.json") == first is not None
    files.write("one.json", b"2")
    assert files.stamp("one.json") != first


def test_lines_are_added_at_the_end(files: Files) -> None:
    files.write("a/other", b"")
    with files.lock("a"):
        files.append("a/lines", b"1\n")
        files.append("a/lines", b"2\n")
    assert files.read("a/lines") == b"1\n2\n"


def test_a_folder_that_is_placed_is_not_replaced(files: Files) -> None:
    files.place("versions/v1", {"weights": b"w", "manifest": b"m"})
    with pytest.raises(FileExistsError):
        files.place("versions/v1", {"weights": b"other", "manifest": b"other"})
    assert files.read("versions/v1/weights") == b"w"
    assert files.names("versions") == ["v1"]
    assert files.walk("versions") == ["versions/v1/manifest", "versions/v1/weights"]


def test_of_many_who_place_a_folder_one_does(make: Make, request: pytest.FixtureRequest) -> None:
    def place(number: int) -> bool:
        try:
            make("store").place("versions/v1", {"who": str(number).encode()})
        except FileExistsError:
            return False
        return True

    # moto compares and writes in two steps, S3 in one: of two at once moto may let both in.
    at_once = 1 if "bucket" in request.node.name else 8
    with ThreadPoolExecutor(at_once) as pool:
        done = list(pool.map(place, range(8)))
    assert done.count(True) == 1
    assert make("store").read("versions/v1/who") == str(done.index(True)).encode()


def test_what_another_wrote_is_seen_soon(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And within a lock at once."""
    ours, theirs = make("store"), make("store")
    theirs.write("a/current.json", b"1")
    assert ours.read("a/current.json") == b"1"
    theirs.write("a/current.json", b"2")
    with ours.lock("a"):
        assert ours.read("a/current.json") == b"2"
    theirs.write("a/current.json", b"3")
    monkeypatch.setattr(module, "FRESH", 0.0)
    assert ours.read("a/current.json") == b"3"


def test_a_place_that_works_passes_its_check_and_keeps_nothing_of_it(files: Files) -> None:
    files.check()
    assert files.names("") == []


def test_a_place_that_cannot_refuse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As WebDAV would be: two workers would write into one version."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Forgetful(MemoryFileSystem):  # type: ignore[misc]
        protocol = "forgetful"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            super().pipe_file(path, value, mode="overwrite")

    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    with pytest.raises(OSError, match="replaces files that it was told not to"):
        BucketFiles("forgetful://models", Locks()).check()


@pytest.mark.parametrize("url", ["s3://no-such-bucket/x", "nosuch://models"])
def test_a_place_that_is_not_there_is_an_error_of_the_store(bucket: None, url: str) -> None:
    store = ModelStore(BucketFiles(url, Locks()))
    with pytest.raises(ModelStoreError, match="cannot write to the model store at") as error:
        store.check_writable()
    assert url in str(error.value)


# The store in a bucket


@pytest.fixture
def store(make: Make) -> ModelStore:
    return ModelStore(make("store"))


def test_a_version_s_life(store: ModelStore, make: Make) -> None:
    known = store.register(project("http://studio.example"))
    assert [publish(store, known) for _ in range(3)] == ["v1", "v2", "v3"]
    store.write_note(known.key, "v2", "worse on pears")
    store.write_following(known.key, "v3", {"rule": 1})
    store.write_order(known.key, {"batch": [1, 2]})
    store.point(known.key, "v2", reason="rollback")
    again = ModelStore(make("store"))
    assert again.projects() == [known]
    assert again.versions(known.key) == ["v1", "v2", "v3"]
    assert (again.current(known.key), again.previous(known.key)) == ("v2", "v1")
    assert again.note(known.key, "v2") == "worse on pears"
    assert again.read_following(known.key, "v3") == {"rule": 1}
    assert again.read_order(known.key) == {"batch": [1, 2]}
    assert again.weights(known.key, "v1").keys() == store.weights(known.key, "v1").keys()
    assert len(b"".join(again.archive(known.key, "v3"))) > 1000
    again.delete(known.key, "v3")
    with pytest.raises(UnknownVersionError):
        store.point(known.key, "v3", reason="too late")
    assert publish(again, known) == "v4"
    assert again.versions(known.key) == ["v1", "v2", "v4"]


def test_many_who_publish_get_a_name_each(make: Make) -> None:
    known = ModelStore(make("store")).register(project("http://studio.example"))
    publish(ModelStore(make("store")), known)
    manifest = ModelStore(make("store")).manifest(known.key, "v1")
    weights = ModelStore(make("store")).weights(known.key, "v1")

    def one(_: int) -> str:
        return ModelStore(make("store")).publish(known.key, manifest, weights)

    with ThreadPoolExecutor(6) as pool:
        names = sorted(pool.map(one, range(12)), key=lambda name: int(name[1:]))
    assert names == [f"v{number}" for number in range(2, 14)]
    store = ModelStore(make("store"))
    assert store.versions(known.key) == ["v1", *names]
    for name in names:
        assert store.weights(known.key, name)


def test_a_publisher_that_dies_leaves_no_version(make: Make) -> None:
    files = make("store")
    known = ModelStore(files).register(project("http://studio.example"))
    with pytest.raises(KeyboardInterrupt):
        files.place(f"projects/{known.key}/versions/v1", Dying())
    store = ModelStore(make("store"))
    assert store.versions(known.key) == []
    assert publish(store, known) in {"v1", "v2"}  # a bucket gives no name twice, taken or not


class Dying(dict[str, bytes]):
    """Ends whoever asks for the second file."""

    def __init__(self) -> None:
        super().__init__({"weights.safetensors": b"w", "manifest.json": b"{}"})

    def items(self):  # type: ignore[no-untyped-def] # noqa: ANN201
        yield "weights.safetensors", b"w"
        raise KeyboardInterrupt


def test_a_backup_moves_a_store_between_a_folder_and_a_bucket(
    store: ModelStore, make: Make, tmp_path: Path
) -> None:
    known = store.register(project("http://studio.example"))
    publish(store, known)
    publish(store, known)
    store.point(known.key, "v1", reason="rollback")
    count = backup(store.files, tmp_path / "kept.zip")
    for place in (make("elsewhere"), FolderFiles(tmp_path / "plain")):
        assert restore(tmp_path / "kept.zip", place) == count
        again = ModelStore(place)
        assert again.versions(known.key) == ["v1", "v2"]
        assert again.current(known.key) == "v1"
        assert again.weights(known.key, "v2").keys() == store.weights(known.key, "v2").keys()
        with pytest.raises(ModelStoreError, match="holds projects already"):
            restore(tmp_path / "kept.zip", place)
