"""What can be read through the page's HTTP interface, and what cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from web_app import (
    ASSETS,
    FakePipeline,
    RunningApp,
    call,
    dropped,
    file,
    free_port,
    loaded,
    sent,
    upload,
)

from NatureLM.app.context import AppContext
from NatureLM.errors import UsageError


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
