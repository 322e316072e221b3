"""Who may open the page, what of it is open, and what can be read through its HTTP interface."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import naturelm
from web_app import (
    ASSETS,
    FakePipeline,
    RunningApp,
    ask,
    call,
    dropped,
    file,
    free_port,
    loaded,
    put,
    running,
    sent,
    upload,
)

from NatureLM.app.context import AppContext
from NatureLM.app.settings import (
    AppSettings,
    guard_rules,
    need_gradio,
    read_people,
)
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.web.guard import SECURITY_HEADERS, Guard, token_for
from NatureLM.web.server import RefusedError, is_loopback

TOKEN = "a-token-of-the-tests"
OPEN_ROUTES = """
GET /
GET /assets/x
GET /config
GET /favicon.ico
GET /gradio_api/call/x/x
GET /gradio_api/heartbeat/x
GET /gradio_api/info
GET /gradio_api/queue/data
GET /gradio_api/startup-events
GET /gradio_api/upload_progress
GET /static/x
GET /theme.css
POST /gradio_api/call/x
POST /gradio_api/cancel
POST /gradio_api/component_server
POST /gradio_api/component_server/
POST /gradio_api/queue/join
POST /gradio_api/reset
POST /gradio_api/upload
"""


def wanted(host: str = "127.0.0.1", *hosts: str, **some: Any) -> str | None:
    return token_for(
        host, hosts, **{"share": False, "given": None, "none": False, "people": False, **some}
    )


def test_a_token_is_needed_wherever_others_reach_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATURELM_TOKEN", raising=False)
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"):
        assert is_loopback(host)
        assert wanted(host) is None
    for host in ("0.0.0.0", "::", "192.168.0.2", "station", "localhost.example"):
        assert not is_loopback(host)
        assert re.fullmatch(r"[\w-]{32}", wanted(host) or "")
        assert wanted(host) != wanted(host)
        assert wanted(host, none=True) is None
        assert wanted(host, people=True) is None
    assert wanted("127.0.0.1", "birds.example.org")  # a reverse proxy hands others on
    assert wanted("127.0.0.1", share=True)
    assert wanted("127.0.0.1", share=True, people=True)
    assert wanted(given=TOKEN) == TOKEN
    monkeypatch.setenv("NATURELM_TOKEN", TOKEN)
    assert wanted() == TOKEN
    assert wanted(none=True) is None
    assert wanted(given=TOKEN[::-1]) == TOKEN[::-1]


@pytest.mark.parametrize(
    ("some", "said"),
    [
        (
            {"share": True, "none": True},
            "--share opens the page to the internet, so it has a token: leave --no-token out",
        ),
        (
            {"given": TOKEN, "none": True},
            "--token and --no-token exclude each other: give one of them",
        ),
        (
            {"given": "short"},
            "--token has 5 characters; a token has 16 or more of a-z, A-Z, 0-9, - and _",
        ),
        (
            {"given": "with/some?other&marks"},
            "--token has 21 characters; a token has 16 or more of a-z, A-Z, 0-9, - and _",
        ),
    ],
)
def test_a_token_that_will_not_do_is_refused(some: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(**some)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("ann:correct horse\n\n# nobody:at all\nbo:a:b:c:d:e\n", 0o600, ""),
        ("ann:correct horse\n", 0o640, "others on this computer can open it (mode 640)"),
        ("ann:correct horse\n", 0o604, "chmod 600"),
        ("ann:correct horse\nann:battery staple\n", 0o600, "line 2: each line is name:password"),
        ("ann\n", 0o600, "line 1"),
        (":correct horse\n", 0o600, "line 1"),
        ("ann:short\n", 0o600, "a password of 8 characters or more"),
        ("\n", 0o600, "there is nobody in it"),
        (None, 0, "--auth cannot read it"),
    ],
)
def test_people_come_from_a_file_of_their_own(
    tmp_path: Path, text: str | None, mode: int, said: str
) -> None:
    path = tmp_path / "people"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    if not said:
        assert read_people(path) == {"ann": "correct horse", "bo": "a:b:c:d:e"}
        return
    with pytest.raises(UsageError) as caught:
        read_people(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    result = naturelm("inference-app", "--auth", path)
    assert result.exit_code == 2
    assert said[:30] in " ".join(result.output.split())


def test_the_names_of_the_page() -> None:
    own = guard_rules(AppSettings())
    assert set(own.hosts) == {"localhost", "127.0.0.1", "::1"}
    assert not own.addresses
    assert (own.keys, own.people, own.cookie) == ({}, {}, "naturelm-5001")
    net = guard_rules(AppSettings(host="0.0.0.0", hosts=("birds.example.org",), token=TOKEN))
    assert {socket.gethostname(), f"{socket.gethostname()}.local"} <= set(net.hosts)
    assert (net.addresses, net.proxied, net.keys) == (
        True,
        ("birds.example.org",),
        {"token": TOKEN},
    )


def test_what_of_gradio_is_open(app: RunningApp) -> None:
    """All routes of the installed Gradio, and those that the guard lets through."""
    from gradio import routes

    source = inspect.getsource(routes)
    found = set()
    for of, kind, path in re.findall(r'@(app|router)\.(get|post)\(\s*f?"([^"]+)"', source):
        plain = re.sub(r"\{[^}]+\}", "x", path)
        found.add((kind.upper(), ("/gradio_api" if of == "router" else "") + plain))
    assert len(found) > 60
    guard = Guard(FakePipeline, guard_rules(AppSettings()))  # type: ignore[arg-type]
    let_through = []
    for method, path in sorted(found):
        try:
            guard._route(method, path)
        except RefusedError:
            continue
        let_through.append(f"{method} {path}")
    assert let_through == OPEN_ROUTES.split("\n")[1:-1]


def test_the_page_offers_two_functions_beside_its_events(app: RunningApp) -> None:
    from NatureLM.app.page import build

    page = build(app.context)
    offered = {
        name
        for block in page.blocks.values()
        for name in dir(block)
        if not name.startswith("__") and getattr(getattr(block, name, None), "_is_server_fn", False)
    }
    assert offered == {"stretch", "listen"}


def status(address: str, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def test_all_answers_of_the_page_are_guarded(app: RunningApp) -> None:
    for path in ("", "config", "theme.css", "favicon.ico", "gradio_api/info", "nowhere"):
        answered, headers = status(app.address + path, Origin="https://evil.example")
        assert answered == (404 if path == "nowhere" else 200)
        assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert headers["access-control-allow-origin"] is None
        assert headers["access-control-allow-credentials"] is None
    assert status(app.address, Host="evil.example")[0] == 403
    assert status(app.address + "gradio_api/file=//evil.example/share/x")[0] == 404


def test_a_page_with_a_token_is_closed_without_it(app: RunningApp, tmp_path: Path) -> None:
    with running(tmp_path, FakePipeline(), token=TOKEN) as locked:
        for path in ("", "config", "gradio_api/info", "gradio_api/file=uploads/x"):
            assert status(locked.address + path)[0] == 401
        assert status(locked.address + "config", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert status(f"{locked.address}?token={TOKEN}x")[0] == 401
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"{locked.address}?token={TOKEN}") as page:
            assert page.url == locked.address
            assert b"gradio" in page.read()


def test_gradio_that_cannot_be_guarded_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_gradio()
    from gradio import processing_utils

    monkeypatch.delattr(processing_utils, "async_ssrf_protected_get")
    with (
        pytest.raises(
            NatureLMError,
            match=r"^gradio [\d.]+ has no processing_utils\.async_ssrf_protected_get, by which it "
            r"fetches files from the internet, so that cannot be closed: install gradio>=6.16,<7$",
        ),
        running(tmp_path, FakePipeline()),
    ):
        pass


def test_who_can_open_the_page_is_said() -> None:
    need_gradio()
    from NatureLM.app.page import who_can_open_it

    settings = AppSettings(runs_dir=Path("runs"))
    assert who_can_open_it(settings, "") == []
    net = replace(settings, host="0.0.0.0")
    assert who_can_open_it(net, "") == [
        "It can be opened by everybody who reaches 0.0.0.0 on the network, as --no-token wants it."
    ]
    assert who_can_open_it(replace(net, token=TOKEN), f"?token={TOKEN}") == [
        f"Others in the network open http://{socket.gethostname()}:5001/?token={TOKEN}."
    ]
    assert who_can_open_it(replace(net, people={"ann": "x", "bo": "y"}), "") == [
        "It can be opened by: ann, bo."
    ]
    assert who_can_open_it(replace(settings, share=True, token=TOKEN), "")[0] == (
        "This address is open to the internet, through a server of Gradio's makers, which sees "
        "every sound, question and answer. Whoever has it with its token can see, start and remove "
        "jobs in runs."
    )


def test_a_shared_page_has_one_more_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_gradio()
    from gradio import networking

    monkeypatch.setattr(networking, "setup_tunnel", lambda **_: "https://abc.gradio.example")
    port = free_port()
    with running(tmp_path, FakePipeline(), token=TOKEN, share=True, port=port) as shared:
        assert shared.address == "https://abc.gradio.example"
        local = f"http://127.0.0.1:{port}/config"
        named = {"Host": "abc.gradio.example"}
        assert status(local, **named)[0] == 401
        assert status(local, **named, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert status(local, Host="evil.example", Authorization=f"Bearer {TOKEN}")[0] == 403


@pytest.mark.parametrize("host", ["::1", "0.0.0.0", "localhost"])
def test_the_page_starts_at_any_address_of_this_computer(tmp_path: Path, host: str) -> None:
    try:
        with socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            pass
    except OSError:
        pytest.skip(f"this computer has no {host}")
    with running(tmp_path, FakePipeline(), host=host) as app:
        assert status(app.address)[0] == 200


def test_a_page_that_a_visitor_sent_runs_nothing(app: RunningApp) -> None:
    with app.context.visitors.upload() as folder:
        (folder / "sent.html").write_text("<script>alert(1)</script>")
    address = app.context.visitors.address(folder / "sent.html")
    answered, headers = status(f"{app.address}gradio_api/file={address}")
    assert answered == 200
    policy = "default-src 'none'; frame-ancestors 'none'; sandbox allow-downloads"
    assert headers["content-security-policy"] == policy


PEOPLE = {"ann": "correct horse"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """An app that asks who comes."""
    folder = tmp_path_factory.mktemp("locked")
    with running(folder, FakePipeline(), people=PEOPLE, token=TOKEN) as app:
        yield app


def is_let_in(page: Any) -> bool:
    """Whether this is the page, and it gets what it is made of; drawing it would take seconds."""
    page.wait_for_selector("gradio-app", state="attached")
    return bool(page.evaluate("fetch('config').then((answer) => answer.ok)"))


@pytest.mark.browser
def test_a_browser_enters_by_the_address_with_its_token(open_page: Any, locked: RunningApp) -> None:
    """Without an error in its console; the token leaves the address, the next visit needs none."""
    page = open_page(locked, link=f"?token={TOKEN}")
    assert page.url == locked.address
    put(page, "ask", ASSETS / "synthetic_dog.WAV")
    assert ask(page, "Who is it?").startswith("You asked: ")
    again = page.context.new_page()
    again.goto(f"{locked.address}?job=none")
    assert is_let_in(again)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert TOKEN not in cookie["value"]


@pytest.mark.browser
def test_a_browser_enters_by_the_form_and_by_a_link_of_another_site(
    chromium: Any, locked: RunningApp
) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{locked.address}?job=none")
    page.fill("input[name=name]", "ann")
    page.fill("input[name=password]", "wrong")
    page.click("button")
    assert page.inner_text("[role=status]") == "This is not right; try again."
    page.fill("input[name=name]", "ann")
    page.fill("input[name=password]", PEOPLE["ann"])
    page.click("button")
    page.wait_for_selector("#tabs")
    assert page.url == f"{locked.address}?job=none"

    other = "http://birds.example/"
    page.route(f"{other}**", lambda route: route.fulfill(body="", content_type="text/html"))
    for link in ("", f"?token={TOKEN}"):
        page.goto(other)
        page.set_content(f'<a href="{locked.address}{link}">there</a>')
        page.click("a")
        assert is_let_in(page)
        assert page.url == locked.address
    page.goto(other)
    sent = page.evaluate(
        """(address) => fetch(address, {method: 'POST', mode: 'no-cors', body: '{}'})
            .then(() => 'sent', () => 'refused')""",
        f"{locked.address}gradio_api/run/predict",
    )
    assert sent == "refused"
    page.set_content(f'<iframe src="{locked.address}"></iframe>')
    page.wait_for_timeout(500)
    assert locked.address not in [frame.url for frame in page.frames]
    context.close()


def test_a_file_that_is_named_by_an_address_is_not_fetched(app: RunningApp, tmp_path: Path) -> None:
    from gradio import processing_utils

    for download in (processing_utils.ssrf_protected_download, processing_utils.save_url_to_cache):
        with pytest.raises(UsageError, match="uploaded, not fetched"):
            download("https://example.org/clip.wav", str(tmp_path))


def test_only_files_of_the_app_are_given(app: RunningApp, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    inside = app.context.visitors.of("somebody").folder
    own = inside / "own.png"
    own.write_text("own")
    (inside / "own.txt").write_text("text")
    address = app.context.visitors.address(own)
    assert file(app, address) == (200, b"own")
    steps = "/".join([".."] * 12)
    for path in (
        "/etc/passwd",
        str(secret),
        str(own),
        f"{address}/../own.txt",
        address.replace(".png", ".txt"),
        str(ASSETS / "samples.csv"),
        f"uploads/{steps}{own}",
        f"{inside}/{steps}/etc/passwd",
        f"{inside}/%2e%2e/{'%2e%2e/' * 12}etc/passwd",
        f"{ASSETS}/../pyproject.toml",
        f"{ASSETS}/..%2fpyproject.toml",
        str(app.context.folder),
        f"{app.context.folder}/visitors",
        "http://127.0.0.1:1/x",
        "https://example.org/",
        "%68ttps://example.org/",
        "file:///etc/passwd",
    ):
        status, body = file(app, path)
        assert status in (400, 403, 404), path
        assert b"root:" not in body
        assert b"secret" not in body.replace(str(secret).encode(), b"")


@pytest.mark.parametrize("name", ["../../../escaped.wav", "..\\\\escaped.wav", "/tmp/escaped.wav"])
def test_uploads_stay_in_their_folder(app: RunningApp, name: str) -> None:
    status, body = upload(app, name, b"sound")
    if status == 200:
        (address,) = json.loads(body)
        path = app.context.visitors.locate(address)
        assert path is not None
        assert path.resolve().is_relative_to(app.context.visitors.uploads)
        assert path.read_bytes() == b"sound"
    else:
        assert status == 400
    assert not (app.context.folder / "escaped.wav").exists()
    assert not Path("/tmp/escaped.wav").exists()


def test_a_path_of_the_server_is_not_taken_for_an_upload(app: RunningApp, tmp_path: Path) -> None:
    """Whoever names a file in a request instead of sending one gets nothing of it."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes((ASSETS / "synthetic_dog.WAV").read_bytes())
    uploaded = sent(app, secret.read_bytes(), "fine.wav")
    assert "fine.wav" in dropped(app, uploaded)
    for path in (str(secret), "/etc/passwd", f"{uploaded}/../../../{secret}"):
        told = dropped(app, path)
        assert "figure" not in told
        assert "root:" not in told


def test_the_page_names_no_other_host(app: RunningApp) -> None:
    """Scripts, styles and fonts come from here; what is left are words about the makers."""
    page = call(app.address)[1].decode()
    for tag in ("<script", "<link", "<img"):
        for part in page.split(tag)[1:]:
            assert "://" not in part.split(">")[0].replace(app.address, ""), part[:200]
    status, css = call(f"{app.address}theme.css")
    assert status == 200
    assert b"googleapis" not in css
    assert b"gstatic" not in page.encode()


def test_a_port_that_is_taken_is_named(app: RunningApp) -> None:
    from NatureLM.app.page import build, launch

    context = AppContext(app.context.settings, loaded(FakePipeline()))
    try:
        with pytest.raises(UsageError, match=r"port \d+ of 127\.0\.0\.1 cannot be used.*--port"):
            launch(build(context), context)
    finally:
        context.close()


@pytest.mark.slow
def test_the_command_opens_the_page_and_clears_up(tmp_path: Path) -> None:
    """The page is there before the model is, and the temporary folder goes with the command."""
    port = free_port()
    command = [sys.executable, "-c", "from NatureLM.cli.main import naturelm; naturelm()"]
    options = ["--port", str(port), "--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "inference-app", *options],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as running_command:
        assert running_command.stderr is not None
        said = [next(running_command.stderr)]
        assert f"The page is at http://127.0.0.1:{port}/" in said[0]
        assert call(f"http://127.0.0.1:{port}/")[0] == 200
        for line in running_command.stderr:
            said.append(line)
            if "is ready." in line:
                break
        assert list(tmp_path.glob("naturelm-app-*"))
        running_command.terminate()
        running_command.wait(60)
    assert list(tmp_path.glob("naturelm-app-*")) == []
