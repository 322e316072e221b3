"""The page: header and tabs, how it looks, and how it is served until somebody stops it.

The theme has the colours of the reports; nothing of it comes from another computer.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from html import escape
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppSettings
from NatureLM.app.tabs import about, ask, experiments, identify, jobs, teach
from NatureLM.app.ui import handler, html, static
from NatureLM.errors import UsageError
from NatureLM.reports.figures import DARK, LIGHT

if TYPE_CHECKING:
    import gradio as gr

TITLE = "NatureLM"
TABS: dict[str, tuple[str, Callable[[AppContext], None]]] = {
    "ask": ("Ask", ask.build),
    "identify": ("Identify", identify.build),
    "teach": ("Teach by example", teach.build),
    "long": ("Long recording", jobs.build_long),
    "folder": ("Folder", jobs.build_folder),
    "experiments": ("Experiments", experiments.build),
    "about": ("About", about.build),
}
"""Name in ids and links → label, and what puts the components into the tab."""
_POLL_SECONDS = 1.0
_DELETE_UPLOADS = (3600, 24 * 3600)  # seconds: look so often for files that are older than that
_REMOTE = re.compile(r"/(file|proxy)=?/?\s*[a-z][a-z0-9+.-]*:/")

_SANS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace")
# Colours of text and controls, light and dark: the accent is the first series of the figures.
_PAGE = ("#f3f1ec", "#141517")
_RAISED = ("#f8f6f2", "#26272b")
_LINE = ("#d3d0c9", "#3b3b3f")
_ACCENT = ("#00598f", "#7cc4f5")
_ON_ACCENT = ("#ffffff", "#101214")


def serve(settings: AppSettings, say: Callable[[str], None] = print) -> None:
    """Build the page, show it, and wait for Ctrl-C; all temporary files go at the end."""
    context = AppContext(settings)
    page = build(context)
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


def build(context: AppContext) -> gr.Blocks:
    """The whole page. Raises UsageError where Gradio is not installed."""
    gradio = need_gradio()
    # Components remember this folder when they are made.
    os.environ["GRADIO_TEMP_DIR"] = str(context.uploads)
    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=_DELETE_UPLOADS
    ) as page:
        _header(context)
        context.handed_over = gradio.State(None)
        with gradio.Tabs(elem_id="tabs") as context.tabs:
            for name, (label, build_tab) in TABS.items():
                with gradio.Tab(label, id=name, elem_id=f"tab-{name}"):
                    build_tab(context)

        @handler
        def left(request: Any) -> None:
            context.visitors.closed(request.session_hash)

        page.unload(left)
    return cast("gr.Blocks", page)


def need_gradio() -> Any:
    """Gradio, with its telemetry off; raises UsageError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Else the browser keeps what was asked and answered after the page is closed.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return import_module("gradio")
    except ImportError:
        raise UsageError(
            "the web app needs gradio, which is not installed: pip install 'naturelm-audio[app]'"
        ) from None


def _header(context: AppContext) -> None:
    """Name, one sentence, and how far the model is."""
    import gradio as gr

    html(
        f"<h1>{TITLE}</h1><p>Ask questions of animal sound. Everything stays on this computer.</p>",
        elem_id="header",
    )
    status = html(status_line(context), elem_id="status")
    timer = gr.Timer(_POLL_SECONDS)

    def look() -> tuple[str, Any]:
        waiting = context.state in ("waiting", "loading")
        return status_line(context), gr.Timer(active=waiting)

    timer.tick(
        look, outputs=[status, timer], show_progress="hidden", queue=False, api_visibility="private"
    )


def status_line(context: AppContext) -> str:
    """HTML that says whether questions can be answered yet."""
    name = escape(context.model_name)
    text = {
        "waiting": f"The model {name} is loading …",
        "loading": f"The model {name} is loading …",
        "ready": f"The model {name} is ready.",
        "failed": f"The model {name} could not be loaded: {escape(context.error or '')}",
    }[context.state]
    return f'<p role="status" class="model {context.state}">{text}</p>'


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


def theme() -> Any:
    """The `gr.Theme`; its fonts are those of the reader's machine."""
    import gradio as gr

    ink, muted = (LIGHT["ink"], DARK["ink"]), (LIGHT["muted"], DARK["muted"])
    paper = (LIGHT["paper"], DARK["paper"])
    values = {
        "body_background_fill": _PAGE,
        "body_text_color": ink,
        "body_text_color_subdued": muted,
        "background_fill_primary": paper,
        "background_fill_secondary": _RAISED,
        "block_background_fill": paper,
        "block_border_color": _LINE,
        "block_label_background_fill": paper,
        "block_label_text_color": muted,
        "block_title_text_color": ink,
        "block_info_text_color": muted,
        "border_color_primary": _LINE,
        "border_color_accent": _ACCENT,
        "color_accent_soft": ("#dcebf5", "#1f3442"),
        "input_background_fill": _RAISED,
        "input_border_color": ("#8b8881", "#76767c"),
        "input_border_color_focus": _ACCENT,
        "input_placeholder_color": muted,
        "panel_background_fill": paper,
        "link_text_color": _ACCENT,
        "slider_color": _ACCENT,
        "button_primary_background_fill": _ACCENT,
        "button_primary_background_fill_hover": ("#004470", "#a5d8fa"),
        "button_primary_text_color": _ON_ACCENT,
        "button_secondary_background_fill": _RAISED,
        "button_secondary_background_fill_hover": ("#e9e6df", "#303137"),
        "button_secondary_border_color": ("#8b8881", "#76767c"),
        "button_secondary_text_color": ink,
        "table_text_color": ink,
        "table_even_background_fill": paper,
        "table_odd_background_fill": _RAISED,
        "table_border_color": _LINE,
        "code_background_fill": _RAISED,
        "error_background_fill": ("#fff3ec", "#33231a"),
        "error_border_color": ("#d05a00", "#f28e4b"),
        "error_text_color": ("#8a3200", "#f7b48a"),
    }
    both = {}
    for name, (light, dark) in values.items():
        both[name], both[f"{name}_dark"] = light, dark
    base = gr.themes.Base(
        primary_hue=_hue(), neutral_hue="stone", font=_SANS, font_mono=_MONO, radius_size="md"
    )
    return base.set(
        **both, color_accent="*primary_600", block_shadow="none", block_border_width="1px"
    )


def _hue() -> Any:
    """The accent from lightest to darkest, for what the theme derives itself."""
    from gradio.themes.utils.colors import Color

    return Color(
        "#eef6fb", "#dcebf5", "#b9dbf0", "#8fc8ea", "#7cc4f5", "#2f8cc4", "#0070b0", "#00598f",
        "#004470", "#003152", "#002138",
    )  # fmt: skip


def css() -> str:
    """The style sheet, with the colours of figures as variables (`--series-0`, `--muted` …)."""
    light = "".join(f"--fig-{role}:{color};" for role, color in LIGHT.items())
    dark = "".join(f"--fig-{role}:{color};" for role, color in DARK.items())
    dark += f"--color-accent:{_ACCENT[1]};"  # for which the theme has no dark value
    colors = f":root{{{light}}}\n:root.dark,:root .dark{{{dark}}}\n"
    return colors + static("app.css") + static("jobs.css")


def head() -> str:
    """Goes into the page's head: the script of the players."""
    return f"<script>{static('app.js')}</script>"
