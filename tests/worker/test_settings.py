"""Settings: every variable read, and each told apart when it is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.studio.image_server import CERTIFICATE
from worker.settings import Secret, SettingError, Settings

WRONG = [
    ("REDIS_URL", "localhost:6379", "redis://"),
    ("HRN_STORE", "s3:///models", "s3://bucket/folder"),
    ("HRN_KEEP_VERSIONS", "1", "2, or 0"),
    ("HRN_KEEP_VERSIONS", "-3", "2, or 0"),
    ("LABEL_STUDIO_URL", "studio.example", "http://"),
    ("LABEL_STUDIO_URL", "http://", "http://"),
    ("HRN_BACKEND_URL", "ftp://backend", "http://"),
    ("HRN_USER", "a:b", "without ':'"),
    ("HRN_PORT", "0", "1 to 65535"),
    ("HRN_PORT", "http", "1 to 65535"),
    ("HRN_THREADS", "1", "2 to 256"),
    ("HRN_DEVICE", "gpu", "auto, cpu or cuda"),
    ("HRN_BACKBONE", "resnet18+", "joined by +"),
    ("HRN_BACKBONE", "resnet18+resnet18", "joined by +"),
    ("HRN_BACKBONE_WEIGHTS", "no/such/file", "files that exist"),
    ("HRN_BACKBONE_WEIGHTS", f"{__file__}:no/such/file", "files that exist"),
    ("HRN_TARGET_ACCURACY", "95", "a share"),
    ("HRN_TARGET_ACCURACY", "nan", "a share"),
    ("HRN_TRAIN_EVERY", "0", "from 1"),
    ("HRN_TRAIN_EVERY", "2.5", "from 1"),
    ("HRN_TRAIN_AFTER_MINUTES", "0", "above 0"),
    ("HRN_FOLLOW_MINUTES", "0", "above 0"),
    ("HRN_FINE_TUNE", "yes", "auto, on or off"),
    ("HRN_ALLOWED_HOSTS", "https://pictures.example", "without http://"),
    ("HRN_ALLOWED_HOSTS", "minio, 10.0.0.0/8", "without networks"),
    ("HRN_ALLOWED_HOSTS", ".corp.example", "*.example.com"),
    ("HRN_ALLOWED_HOSTS", "*", "the word public for every public host"),
    ("HRN_MAX_MEGABYTES", "0", "from 1 to 2000"),
    ("HRN_MAX_MEGAPIXELS", "many", "from 1 to 4000"),
    ("REQUESTS_CA_BUNDLE", "no/such/file.pem", "certificates in PEM, or a folder of them, that"),
    ("SSL_CERT_FILE", __file__, "certificates in PEM"),
    ("REDIS_URL", "redis://host:6379/abc", "whose database is a number"),
    ("REDIS_URL", "redis://a:6379/0,redis://b:6380/0", "one address"),
    ("HRN_ALLOW_PRIVATE", "maybe", "true or false"),
    ("HRN_LOCAL_FILES", "no/such/folder", "a folder that exists"),
    ("HRN_CACHE_GB", "-1", "above 0"),
]

RIGHT: dict[str, tuple[str, str, Any]] = {
    "REDIS_URL": ("redis_url", "unix:///run/redis.sock", "unix:///run/redis.sock"),
    "LABEL_STUDIO_URL": ("label_studio_url", "http://studio/", "http://studio"),
    "HRN_LABEL_STUDIO_PAGE": (
        "label_studio_page",
        "https://labels.example/",
        "https://labels.example",
    ),
    "LABEL_STUDIO_API_KEY": ("label_studio_token", " key\n", Secret("key")),
    "HRN_BACKEND_URL": ("backend_url", "https://b:1/x/", "https://b:1/x"),
    "HRN_HOME": ("home", "/data", Path("/data")),
    "HRN_STORE": ("store_url", "s3://bucket/models/", "s3://bucket/models"),
    "HRN_USER": ("user", "ls", "ls"),
    "HRN_PASSWORD": ("password", " é ", Secret(" é ")),
    "HRN_CONSOLE_PASSWORD": ("console_password", " é ", Secret(" é ")),
    "HRN_HOST": ("host", "0.0.0.0", "0.0.0.0"),
    "HRN_PORT": ("port", "80", 80),
    "HRN_THREADS": ("threads", "4", 4),
    "HRN_DEVICE": ("device", "cuda", "cuda"),
    "HRN_BACKBONE": ("backbone", "resnet18", "resnet18"),
    "HRN_BACKBONE_WEIGHTS": ("backbone_weights", __file__, (Path(__file__),)),
    "HRN_TARGET_ACCURACY": ("target_accuracy", "0.95", 0.95),
    "HRN_TRAIN_EVERY": ("train_every", "5", 5),
    "HRN_TRAIN_AFTER_MINUTES": ("train_after", "0.5", 0.5),
    "HRN_FOLLOW_MINUTES": ("follow_minutes", "2.5", 2.5),
    "HRN_FINE_TUNE": ("fine_tune", "on", "on"),
    "HRN_GROUP_FIELD": ("group_field", "store", "store"),
    "HRN_ALLOWED_HOSTS": ("allowed_hosts", "a.example, b.example", {"a.example", "b.example"}),
    "HRN_ALLOW_PRIVATE": ("allow_private", "TRUE", True),
    "HRN_LOCAL_FILES": ("local_files", str(Path(__file__).parent), Path(__file__).parent),
    "HRN_MAX_MEGABYTES": ("max_megabytes", "300", 300),
    "HRN_MAX_MEGAPIXELS": ("max_megapixels", "250.5", 250.5),
    "REQUESTS_CA_BUNDLE": ("requests_ca_bundle", str(CERTIFICATE), CERTIFICATE),
    "SSL_CERT_FILE": ("ssl_cert_file", str(CERTIFICATE.parent), CERTIFICATE.parent),
    "HRN_CACHE_GB": ("cache_gb", "0.5", 0.5),
    "HRN_KEEP_VERSIONS": ("keep_versions", "3", 3),
}


def test_a_store_s_address_holds_no_secret() -> None:
    with pytest.raises(SettingError, match=r"HRN_STORE: expected .* without a user name") as told:
        Settings.from_environ({"HRN_STORE": "s3://key:hidden@bucket/models"})
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize(("name", "text", "expected"), WRONG)
def test_a_wrong_setting_is_named_with_its_text_and_what_was_expected(
    name: str, text: str, expected: str
) -> None:
    with pytest.raises(SettingError) as told:
        Settings.from_environ({name: text})
    message = str(told.value)
    assert message.startswith(f"{name}: expected ")
    assert expected in message
    assert repr(text) in message


@pytest.mark.parametrize("name", RIGHT)
def test_a_variable_is_read(name: str) -> None:
    field, text, value = RIGHT[name]
    assert getattr(Settings.from_environ({name: text}), field) == value


def test_every_field_is_tried_here() -> None:
    fields = {field.metadata["name"]: field.name for field in dataclasses.fields(Settings)}
    assert {name: field for name, (field, _, _) in RIGHT.items()} == fields


def test_nothing_set_is_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()
    assert Settings.from_environ(dict.fromkeys(RIGHT, "")) == Settings()


def test_secrets_are_not_shown() -> None:
    environ = {
        "HRN_PASSWORD": "s3cret",
        "HRN_CONSOLE_PASSWORD": "s3cret",
        "LABEL_STUDIO_API_KEY": "s3cret",
        "REDIS_URL": "redis://:s3cret@host",
    }
    settings = Settings.from_environ(environ)
    assert "s3cret" not in f"{settings!r} {settings} {settings.password} {[settings.password]}"
    assert settings.password.reveal() == "s3cret"


def test_a_password_in_a_wrong_address_is_not_shown() -> None:
    with pytest.raises(SettingError) as told:
        Settings.from_environ({"REDIS_URL": "http://me:s3cret@host/0"})
    assert "http://***@host/0" in str(told.value)
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("HRN_PASSWROD", "did you mean HRN_PASSWORD?"),
        ("HRN_TRAINEVERY", "did you mean HRN_TRAIN_EVERY?"),
        ("hrn_port", "did you mean HRN_PORT?"),
        ("HRN_QUUX", "README lists them; unset this one"),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_nearest_and_its_text_stays_unseen(
    name: str, fix: str
) -> None:
    with pytest.raises(SettingError) as told:
        Settings.from_environ({name: "s3cret", "HRN_HOST": "0.0.0.0"})
    assert str(told.value) == f"{name} is no setting: {fix}"


def test_what_kubernetes_says_of_a_service_of_ours_is_left_alone() -> None:
    given = {
        "HRN_WEB_SERVICE_HOST": "10.0.0.7",
        "HRN_WEB_SERVICE_PORT": "9090",
        "HRN_WEB_PORT": "tcp://10.0.0.7:9090",
        "HRN_WEB_PORT_9090_TCP_ADDR": "10.0.0.7",
    }
    assert Settings.from_environ(given) == Settings()


def test_variables_of_others_are_left_alone() -> None:
    others = ("PATH", "LABEL_STUDIO_USERNAME", "HRN_LISTEN", "HRN_SHARED", "CHRN_X")
    assert Settings.from_environ(dict.fromkeys(others, "x")) == Settings()


#: Passwords with letters that must be encoded in an address, as people write them who do not know.
BARE = [
    "redis://hrn:s3cret@w/rd#x@host:6379/0",
    "redis://hrn:s3@cret/w#rd@host:6379/0",
    "redis://:s3cret/w@host:6379/0",
    "redis://:s3cret?w@host:6379/0",
    "redis://:s3cret#w@host:6379/0",
    "redis://:s3cret",
    "redis://host:s3cret/0",
    "redis://host:6379/x?password=s3cret",
    "redis://:s3cret@a:6379/0,redis://:s3cret@b:6379/0",
    "unix:///run/redis.sock?password=s3cret@x",
    "unix://me:s3cret/x@/run/redis.sock",
]


@pytest.mark.parametrize("text", BARE)
def test_no_piece_of_a_password_that_is_not_encoded_is_shown(text: str) -> None:
    with pytest.raises(SettingError) as told:
        Settings.from_environ({"REDIS_URL": text})
    assert "REDIS_URL: expected" in str(told.value)
    assert "%2F" in str(told.value)
    assert told.value.__cause__ is None
    for piece in ("s3", "cret", "w#rd", "w@", "?w"):
        assert piece not in str(told.value).partition("got ")[2]


@pytest.mark.parametrize("name", ["LABEL_STUDIO_URL", "HRN_LABEL_STUDIO_PAGE", "HRN_BACKEND_URL"])
@pytest.mark.parametrize(
    "text", ["http://me:s3cret@host", "https://s3/cret@host", "http://me:s3#cret@x"]
)
def test_an_address_with_a_password_is_refused_wherever_its_host_seems_to_end(
    name: str, text: str
) -> None:
    with pytest.raises(SettingError, match="without a user name") as told:
        Settings.from_environ({name: text})
    assert "s3" not in str(told.value)
    assert "cret" not in str(told.value)


def test_what_stands_for_a_port_and_is_none_may_be_a_password() -> None:
    with pytest.raises(SettingError, match=r"got 'http://studio:\*\*\*'"):
        Settings.from_environ({"LABEL_STUDIO_URL": "http://studio:port"})


def test_a_store_s_address_whose_secret_ends_the_bucket_is_refused() -> None:
    with pytest.raises(SettingError) as told:
        Settings.from_environ({"HRN_STORE": "s3://key:hid/den@bucket/models"})
    assert "hid" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    ["redis://:p%40ss%2Fw@host:6379/3", "rediss://host:6380/0?ssl_ca_certs=/etc/ca.pem",
     "redis://[::1]:6379", "redis://me:p@ss@host/", "unix:///run/redis.sock?db=2"],
)  # fmt: skip
def test_an_address_of_redis_that_can_be_meant_is_taken(text: str) -> None:
    assert Settings.from_environ({"REDIS_URL": text}).redis_url == text


def test_equal_secrets_are_equal() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != "a"
    assert not Secret()
