"""Show the page until somebody stops it."""

from __future__ import annotations

import re
import socket
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from NatureLM.app.page import css, head, theme
from NatureLM.app.settings import AppContext, AppSettings
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    import gradio as gr


_REMOTE = re.compile(r"/(file|proxy)=?/?\s*[a-z][a-z0-9+.-]*:/")


def launch(page: gr.Blocks, context: AppContext) -> str:
    """Start the server in the background; the page's address. The model starts to load."""
    settings = context.settings
    _check_port(settings)
    refuse_addresses()
    context.runs_dir.mkdir(parents=True, exist_ok=True)
    readable = [context.folder / "visitors", context.runs_dir, context.assets_dir]
    limits = settings.limits
    page.queue(max_size=limits.waiting_questions, default_concurrency_limit=limits.answers_at_once)
    _, address, shared = page.launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        inbrowser=False,
        allowed_paths=[str(path) for path in readable if path is not None],
        max_file_size=limits.upload_bytes,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        app_kwargs={"middleware": [(OwnFilesOnly, (), {})]},
        # Gradio would ask itself for the page and give up after three seconds, which a busy
        # computer needs.
        _frontend=False,
        favicon_path=str(files("NatureLM.app") / "static" / "icon.svg"),
        theme=theme(),
        css=css(),
        head=head(),
    )
    context.start_loading()
    return str(shared or address)


def refuse_addresses() -> None:
    """Make Gradio fetch nothing: it would download a file that a request names by an address."""
    from gradio import processing_utils

    processing_utils.async_ssrf_protected_get = _refuse  # the one door to all its downloads


async def _refuse(url: str) -> Any:
    raise UsageError(f"files are uploaded, not fetched: {url[:200]}")


class OwnFilesOnly:
    """ASGI middleware: refuses to fetch an address of the internet for whoever asks.

    Gradio would do so for `/gradio_api/file=https://…`, and nothing may leave this computer.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = str(scope.get("path", "")).lower()
        if scope["type"] == "http" and _REMOTE.search(path):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"Only files of the app are given."})
            return
        await self._app(scope, receive, send)


def serve(settings: AppSettings, say: Any = print) -> None:
    """Build the page, show it, and wait for Ctrl-C; all temporary files go at the end."""
    from NatureLM.app.page import build

    context = AppContext(settings)
    page = build(settings, context)
    try:
        say(f"The page is at {launch(page, context)} (stop it with Ctrl-C).")
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            say(f"It can be opened by everybody who reaches {settings.host} on the network.")
        say(f"The model {context.model_name} is loading; the page says when it is ready.")
        context.pipeline()
        say("The model is ready.")
        page.block_thread()
    finally:
        page.close(verbose=False)
        context.close()


def _check_port(settings: AppSettings) -> None:
    """Raise UsageError where somebody else has the port."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise UsageError(
                f"port {settings.port} of {settings.host} cannot be used "
                f"({error.strerror or error}); choose another with --port"
            ) from None
