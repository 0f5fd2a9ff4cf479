"""Getting in and out: nobody without the console's own password, nobody for ever."""

import base64
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.console.limits import OF_ONE
from tests.backend.console.conftest import PASSWORD, sign_in, token
from worker.parts import Parts
from worker.settings import Secret


def session_of(client: FlaskClient) -> str | None:
    cookie = client.get_cookie("hrn_console", path="/console")
    return None if cookie is None else cookie.value


def basic(text: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize("page", ["/console", "/console/", "/console/sign-in", "/console/nowhere"])
def test_without_a_password_being_set_there_is_no_console(
    bare: Callable[..., FlaskClient], page: str
) -> None:
    reply = bare().get(page, follow_redirects=True)
    assert reply.status_code == 404
    assert "HRN_CONSOLE_PASSWORD" in reply.text


def test_an_empty_password_never_opens_it(bare: Callable[..., FlaskClient]) -> None:
    assert bare().post("/console/sign-in", data={"password": ""}).status_code == 404


def test_who_is_not_signed_in_is_led_to_the_form_and_then_on(visitor: FlaskClient) -> None:
    reply = visitor.get("/console/projects/x/training?a=1")
    assert reply.status_code == 303
    assert reply.location == "/console/sign-in?next=/console/projects/x/training?a%3D1"
    form = visitor.get(reply.location).text
    assert 'name="next" value="/console/projects/x/training?a=1"' in form
    reply = sign_in(visitor, form={"next": "/console/projects/x/training?a=1"})
    assert reply.location == "/console/projects/x/training?a=1"


def test_who_was_signed_out_meanwhile_is_told_so_and_led_back(
    admin: FlaskClient, console_parts: Parts
) -> None:
    form = {"csrf": token(admin, "/console")}
    signed_in = str(session_of(admin))
    admin.post("/console/sign-out", data=form)  # in another tab, say
    admin.set_cookie("hrn_console", signed_in, path="/console")
    reply = admin.get("/console/projects/x/training")
    assert reply.location == "/console/sign-in?next=/console/projects/x/training&why=ended"
    text = admin.get(reply.location).text
    assert "You were signed out: a session ends after 30 min without use" in text
    assert "was not done" not in text

    page = "http://localhost/console/projects/x/training"
    admin.set_cookie("hrn_console", signed_in, path="/console")
    reply = admin.post("/console/projects/x/training/start", data=form, headers={"Referer": page})
    assert reply.location == "/console/sign-in?next=/console/projects/x/training&why=sent"
    assert "What you have just sent was not done" in admin.get(reply.location).text
    admin.set_cookie("hrn_console", signed_in, path="/console")
    reply = admin.post(
        "/console/checkup", data=form, headers={"Referer": "http://elsewhere.example/console"}
    )
    assert reply.location == "/console/sign-in?why=sent"


def test_who_never_was_signed_in_is_told_nothing_of_the_kind(visitor: FlaskClient) -> None:
    assert "signed out" not in visitor.get("/console", follow_redirects=True).text


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://elsewhere.example/",
        "//elsewhere.example/console",
        "/console//elsewhere.example",
        "/console\\elsewhere",
        "javascript:alert(1)",
        "/console/../setup",
        "/setup",
        "/consoles",
        "/console\nSet-Cookie: a=b",
    ],
)
def test_nobody_is_led_out_of_the_console(visitor: FlaskClient, elsewhere: str) -> None:
    assert sign_in(visitor, form={"next": elsewhere}).location == "/console"


def test_a_wrong_password_is_told_and_opens_nothing(visitor: FlaskClient) -> None:
    reply = sign_in(visitor, "wrong")
    assert reply.status_code == 403
    assert "not the console" in reply.text
    assert visitor.get("/console").status_code == 303


@pytest.mark.parametrize(
    "given", ["", " ", PASSWORD + " ", PASSWORD[:-1], PASSWORD.upper(), "\x00"]
)
def test_only_the_very_password_opens(visitor: FlaskClient, given: str) -> None:
    assert sign_in(visitor, given).status_code == 403


def test_a_password_of_any_letters_can_be_used(bare: Callable[..., FlaskClient]) -> None:
    client = bare(console_password=Secret("пароль ☃"))
    assert sign_in(client, "пароль ☃").status_code == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(visitor: FlaskClient) -> None:
    cookies = sign_in(visitor).headers.getlist("Set-Cookie")
    session = next(one for one in cookies if one.startswith("hrn_console="))
    assert "; HttpOnly; " in session
    assert "; Path=/console; " in session
    assert session.endswith("SameSite=Strict")
    assert "Secure" not in session
    assert "Expires" not in session


def test_behind_a_proxy_with_tls_the_cookie_stays_on_tls(visitor: FlaskClient) -> None:
    form = {"csrf": token(visitor), "password": PASSWORD}
    headers = {"X-Forwarded-Proto": "https"}
    reply = visitor.post("/console/sign-in", data=form, headers=headers)
    session = next(one for one in reply.headers.getlist("Set-Cookie") if "hrn_console=" in one)
    assert "; Secure; " in session


def test_each_sign_in_begins_a_session_of_a_new_name(visitor: FlaskClient) -> None:
    visitor.set_cookie("hrn_console", "chosen-by-an-attacker", path="/console")
    sign_in(visitor)
    first = session_of(visitor)
    assert first not in (None, "chosen-by-an-attacker")
    visitor.post("/console/sign-out", data={"csrf": token(visitor, "/console")})
    sign_in(visitor)
    assert session_of(visitor) not in (None, first)


def test_signing_in_ends_the_session_that_was(admin: FlaskClient) -> None:
    before = str(session_of(admin))
    form = {"csrf": token(admin, "/console"), "password": PASSWORD}
    assert admin.post("/console/sign-in", data=form).status_code == 303
    assert session_of(admin) != before
    admin.set_cookie("hrn_console", before, path="/console")
    assert admin.get("/console").status_code == 303


def test_signing_out_ends_the_session_for_every_copy_of_the_cookie(admin: FlaskClient) -> None:
    stolen = str(session_of(admin))
    reply = admin.post("/console/sign-out", data={"csrf": token(admin, "/console")})
    assert reply.status_code == 303
    assert session_of(admin) is None
    admin.set_cookie("hrn_console", stolen, path="/console")
    assert admin.get("/console").status_code == 303


def test_a_session_holds_for_another_server_of_the_same_home(
    admin: FlaskClient, console_parts: Parts
) -> None:
    other = create_app(console_parts).test_client()
    other.set_cookie("hrn_console", str(session_of(admin)), path="/console")
    assert other.get("/console").status_code == 200


def test_one_signs_in_while_redis_is_away(admin_without_redis: FlaskClient) -> None:
    reply = admin_without_redis.get("/console")
    assert reply.status_code == 200
    assert "Redis cannot be reached" in reply.text


def test_who_is_signed_in_is_led_past_the_form(admin: FlaskClient) -> None:
    assert admin.get("/console/sign-in").location == "/console"


def test_too_many_tries_are_stopped_even_with_the_right_password(visitor: FlaskClient) -> None:
    for _ in range(OF_ONE):
        assert sign_in(visitor, "wrong").status_code == 403
    reply = sign_in(visitor)
    assert reply.status_code == 429
    assert int(reply.headers["Retry-After"]) > 0
    assert "Too many tries" in reply.text
    proxied = {"X-Forwarded-For": "192.0.2.77"}
    assert sign_in(visitor, headers=proxied).status_code == 303


def test_the_passwords_of_label_studio_and_of_the_console_do_not_open_each_other(
    bare: Callable[..., FlaskClient],
) -> None:
    client = bare(password=Secret("studio"), console_password=Secret(PASSWORD))
    for given in (basic("label-studio:studio"), basic(f"label-studio:{PASSWORD}")):
        assert client.get("/console", headers=given).status_code == 303
    assert sign_in(client, "studio").status_code == 403
    assert sign_in(client).status_code == 303
    assert client.get("/console").status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/versions?project=1.1").status_code == 401
    assert client.get("/metrics", headers=basic(f"label-studio:{PASSWORD}")).status_code == 401


def test_what_a_page_asks_by_itself_is_refused_without_a_page(visitor: FlaskClient) -> None:
    assert visitor.get("/console/state").status_code == 401
    assert visitor.get("/console", headers={"X-Live": "1"}).status_code == 401


def test_a_link_on_another_site_leads_to_a_page_that_asks_again(visitor: FlaskClient) -> None:
    """The browser kept the cookie back; asked by our own page it sends it."""
    reply = visitor.get("/console/projects/x/training", headers={"Sec-Fetch-Site": "cross-site"})
    assert reply.status_code == 200
    assert reply.headers["Refresh"] == "0; url=/console/projects/x/training"
