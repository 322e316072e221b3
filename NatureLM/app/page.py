"""The page: header, tabs and About, how it looks, and how it is served until somebody stops it.

The theme has the colours of the reports; nothing of it comes from another computer.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from html import escape
from importlib.resources import files
from typing import Any, cast
from urllib.parse import urlsplit

import gradio as gr
from gradio import processing_utils
from gradio.themes.utils.colors import Color
from starlette.applications import Starlette
from starlette.routing import Mount

import NatureLM
from NatureLM.app import experiments
from NatureLM.app.ask_tabs import build_ask, build_identify, build_teach
from NatureLM.app.clips import without_paths
from NatureLM.app.context import AppContext
from NatureLM.app.job_tabs import JobTab
from NatureLM.app.reviews import MOUNTED, Reviews, build_review
from NatureLM.app.settings import (
    AppSettings,
    guard_rules,
    keep_loopback_direct,
    need_gradio,
    past_proxies,
)
from NatureLM.app.ui import QUIET, html, static
from NatureLM.app.uploads import FilesByAddress, Page, begin_files, unfit
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.models.registry import find
from NatureLM.reports.figures import DARK, LIGHT
from NatureLM.species import names_on_card
from NatureLM.util import format_bytes, format_duration, library
from NatureLM.web.guard import Guard
from NatureLM.web.server import bound_connections, check_port, in_address, is_loopback

TITLE = "NatureLM"
TABS: dict[str, tuple[str, Callable[[AppContext], object]]] = {
    "ask": ("Ask", build_ask),
    "identify": ("Identify", build_identify),
    "teach": ("Teach by example", build_teach),
    "long": ("Long recording", lambda context: JobTab(context, "long")),
    "folder": ("Folder", lambda context: JobTab(context, "folder")),
    "review": ("Review", build_review),
    "experiments": ("Experiments", experiments.build),
    "about": ("About", lambda context: html(about(context), elem_id="about")),
}
"""Name in ids and links → label, and what puts the components into the tab."""
_POLL_SECONDS = 1.0
# Gradio looks a thousand times a second whether somebody asks: 6 % of a core while nobody does.
_LOOK_SECONDS = 0.02

_SANS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace")
# Colours of text and controls, light and dark: the accent is the first series of the figures.
_PAGE = ("#f3f1ec", "#141517")
_RAISED = ("#f8f6f2", "#26272b")
_LINE = ("#d3d0c9", "#3b3b3f")
_ACCENT = ("#00598f", "#7cc4f5")
_ON_ACCENT = ("#ffffff", "#101214")
# From lightest to darkest, for what the theme derives itself.
_HUE = Color(
    "#eef6fb", "#dcebf5", "#b9dbf0", "#8fc8ea", "#7cc4f5", "#2f8cc4", "#0070b0", "#00598f",
    "#004470", "#003152", "#002138",
)  # fmt: skip


def serve(settings: AppSettings, say: Callable[[str], None] = print) -> None:
    """Build the page, show it, and wait for Ctrl-C; all temporary files go at the end."""
    os.umask(0o077)  # what visitors give is for nobody else on this computer
    context = AppContext(settings)
    page: Page | None = None
    try:
        page = build(context)
        address = launch(page, context)
        key = "" if settings.token is None else f"?token={settings.token}"
        say(f"The page is at {address}{key} (stop it with Ctrl-C).")
        for line in who_can_open_it(settings, key):
            say(line)
        say(f"The model {context.model_name} is loading; the page says when it is ready.")
        context.pipeline()
        say("The model is ready.")
        page.block_thread()
    finally:
        with _undisturbed():
            if page is not None:
                page.close(verbose=False)
            context.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second signal to stop does not keep the first from clearing up."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def who_can_open_it(settings: AppSettings, key: str) -> list[str]:
    """Sentences for whoever starts the app; none where only this computer reaches the page."""
    lines = []
    if settings.share:
        lines.append(
            "This address is open to the internet, through a server of Gradio's makers, which sees "
            "every sound, question and answer. Whoever has it with its token can see, start and "
            f"remove jobs in {settings.runs_dir}."
        )
    if settings.token is not None and not is_loopback(settings.host):
        port = settings.port
        lines.append(f"Others in the network open http://{socket.gethostname()}:{port}/{key}.")
    elif settings.people:
        lines.append(f"It can be opened by: {', '.join(settings.people)}.")
    elif settings.token is None and not is_loopback(settings.host):
        lines.append(
            f"It can be opened by everybody who reaches {settings.host} on the network, as "
            "--no-token wants it."
        )
    return lines


def build(context: AppContext) -> Page:
    need_gradio()
    # Components remember this folder when they are made.
    os.environ["GRADIO_TEMP_DIR"] = str(context.visitors.uploads)
    page = Page(title=TITLE, analytics_enabled=False, fill_width=True)
    context.reviews = Reviews(context.jobs, context.limits)
    context.closing.callback(context.reviews.close)
    with page:
        _header(context)
        context.handed_over = gr.State(None)
        with gr.Tabs(elem_id="tabs") as context.tabs:
            for name, (label, build_tab) in TABS.items():
                with gr.Tab(label, id=name, elem_id=f"tab-{name}"):
                    build_tab(context)

        def left(request: gr.Request) -> None:
            context.visitors.closed(request.session_hash)

        page.unload(left)
        begin_files(page, context)
    return page


def _header(context: AppContext) -> None:
    """Name, one sentence, and how far the model is."""
    html(
        f"<h1>{TITLE}</h1><p>Ask questions of animal sound. Everything stays on this computer.</p>",
        elem_id="header",
    )
    status = html(status_line(context), elem_id="status")
    timer = gr.Timer(_POLL_SECONDS)

    def look() -> tuple[str, Any]:
        waiting = context.loader.state in ("waiting", "loading")
        return status_line(context), gr.Timer(active=waiting)

    timer.tick(look, outputs=[status, timer], **QUIET)


def status_line(context: AppContext) -> str:
    """HTML that says whether questions can be answered yet."""
    name, state = escape(context.shown_model), context.loader.state
    text = {
        "ready": "is ready.",
        "failed": f"could not be loaded: {escape(without_paths(context.loader.error))}",
    }.get(state, "is loading …")
    return f'<p role="status" class="model {state}">The model {name} {text}</p>'


def about(context: AppContext) -> str:
    """The tab About: which model it is, what it cannot do, and what may be done with it."""
    return "".join(
        f'<section class="about-part"><h2>{title}</h2>{body}</section>'
        for title, body in (
            ("The model", _model(context)),
            ("What it cannot do", _limits(context)),
            ("The published model", _PUBLISHED),
            (
                "Where the data go",
                "<p>Sounds and questions stay on the computer that runs this page. What you give "
                "and what is answered are removed a minute after the page is closed, when nothing "
                f"is done on it for {format_duration(context.limits.idle_seconds, short=True)}, or "
                "earlier where others need the room. Jobs of <em>Long recording"
                f"</em> and <em>Folder</em> stay in <code>{escape(context.runs_dir.name)}</code> "
                "until you remove them.</p>",
            ),
        )
    )


_PUBLISHED = (
    "<p>NatureLM-audio (ICLR 2025) has 8 billion parameters and knows thousands of species. "
    "Its weights are for non-commercial use (CC BY-NC-SA 4.0), and the language model in it "
    "comes from Meta under the Llama 3.1 licence. With a graphics card of 24 GB:</p>"
    "<ol><li>Ask for access to <code>meta-llama/Llama-3.1-8B-Instruct</code> on the Hugging "
    "Face Hub.</li><li><code>hf auth login</code></li>"
    "<li><code>naturelm inference-app --model naturelm-audio</code></li></ol>"
)


def _model(context: AppContext) -> str:
    facts = {"Name": context.shown_model}
    if entry := find(context.model_name):
        facts["What it is"] = entry.description
        facts["Parameters"] = entry.parameters
        facts["Licence"] = entry.license
    facts["Software"] = f"NatureLM {NatureLM.__version__}, Apache-2.0"
    rows = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
    )
    names = names_on_card(context.model_name)
    known = (
        f"<details><summary>It knows {len(names)} names of animals</summary>"
        f"<p>{escape(', '.join(names))}</p></details>"
        if names
        else ""
    )
    return f"<dl>{rows}</dl>{known}"


def _limits(context: AppContext) -> str:
    limits, entry = context.limits, find(context.model_name)
    small = (
        "<li>The embedded model is small. It calls every animal by one of the names it knows, "
        "whatever it hears. It is for trying things out, not for science.</li>"
        if entry is not None and entry.embedded
        else ""
    )
    return (
        f"<ul>{small}"
        f"<li>It hears up to {context.sample_rate / 2000:g} kHz. Bats are above that: open "
        "<em>Bats</em> below the sounds to slow them down.</li>"
        "<li>It hears ten seconds at once; longer recordings are asked about in windows.</li>"
        "<li>Answers are guesses. Look at the spectrogram, and listen.</li>"
        f"<li>A file may have {format_bytes(limits.upload_bytes)}, a clip may last "
        f"{format_duration(limits.ask_seconds, short=True)}, and {limits.clips} clips fit into one "
        "question.</li>"
        "</ul>"
    )


def launch(page: Page, context: AppContext) -> str:
    """Start the server in the background; the page's address. The model starts to load."""
    settings = context.settings
    check_port(settings.host, settings.port)
    _prepare(page, context)
    guards: list[Guard] = []

    @asynccontextmanager
    async def guarded(app: Any) -> AsyncIterator[None]:
        """Stand in front of all that Gradio puts together, before the port is open."""
        app.router.routes.insert(0, Mount(MOUNTED, context.reviews.app()))
        app.middleware_stack = Guard(app.middleware_stack, guard_rules(settings))
        guards.append(app.middleware_stack)
        yield

    told = _told_to_gradio(context)
    told["app_kwargs"]["lifespan"] = guarded
    with _ways_out(settings):
        app, address, shared = page.launch(
            share=settings.share,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            num_workers=0,
            state_session_capacity=settings.limits.sessions,
            # Gradio would ask itself for the page and give up after three seconds, which a busy
            # computer needs.
            _frontend=False,
            **told,
        )
    if app.middleware_stack not in guards:
        raise unfit("does not let itself be guarded")
    bound_connections(page.server.config)
    if settings.share and not shared:
        raise NatureLMError("--share found no way to Gradio's server; leave it out, or try again")
    if shared:
        guards[0].also_called(urlsplit(shared).hostname or "")
    context.loader.start()
    return str(shared or address)


def mounted(page: Page, context: AppContext) -> tuple[Guard, Callable[[], Any]]:
    """The page behind its guard, as an application at the root of somebody else's server.

    Within the other, a context manager, the page answers; the model starts to load with it.
    """
    _prepare(page, context)
    page.state_session_capacity = context.settings.limits.sessions
    outer = Starlette(routes=[Mount(MOUNTED, context.reviews.app())])
    gr.mount_gradio_app(cast(Any, outer), page, path="/", **_told_to_gradio(context))

    @asynccontextmanager
    async def alive() -> AsyncIterator[None]:
        context.loader.start()
        async with outer.router.lifespan_context(outer):
            yield

    return Guard(outer, guard_rules(context.settings)), alive


def _prepare(page: Page, context: AppContext) -> None:
    """What a page needs before it is served."""
    limits = context.settings.limits
    _close_the_way_out()
    _allow_open_files()
    context.runs_dir.mkdir(parents=True, exist_ok=True)
    page.queue(
        max_size=limits.waiting_questions,
        default_concurrency_limit=limits.answers_at_once,
        api_open=False,  # else whoever asks directly passes those who wait
    )
    page._queue.sleep_when_free = _LOOK_SECONDS
    page._queue.progress_update_sleep_when_free = 5 * _LOOK_SECONDS
    page.keep_answering()
    keep_loopback_direct(context.settings.host)


def _told_to_gradio(context: AppContext) -> dict[str, Any]:
    """What Gradio is told, whoever serves it."""
    settings = context.settings
    # Asked for by address alone: see `uploads`.
    readable = [context.folder / "visitors", context.runs_dir]
    return {
        "server_name": in_address(settings.host),
        "server_port": settings.port,
        "show_error": False,
        "allowed_paths": [str(path) for path in readable],
        "max_file_size": settings.limits.upload_bytes,
        "enable_monitoring": False,
        "ssr_mode": False,
        "footer_links": [],
        "app_kwargs": {"middleware": [(FilesByAddress, (context.visitors,), {})]},
        "mcp_server": False,
        "root_path": "",
        "favicon_path": str(files("NatureLM.app") / "static" / "icon.svg"),
        "theme": theme(),
        "css": css(),
        "head": f"<script>{static('app.js')}</script>",
    }


def _close_the_way_out() -> None:
    """Let no file be fetched that a request names by an address of the internet.

    Raises NatureLMError where Gradio no longer has the one function that all of that goes through.
    """
    name = "async_ssrf_protected_get"
    if not hasattr(processing_utils, name):
        raise unfit(
            f"has no processing_utils.{name}, by which it fetches files from the internet, so that "
            "cannot be closed"
        )
    setattr(processing_utils, name, _refuse)


def _allow_open_files(most: int = 8192) -> None:
    """Raise the soft limit of open files: Gradio holds all of an upload open, up to 1000."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _ways_out(settings: AppSettings) -> AbstractContextManager[None]:
    """How requests of Gradio go: to this computer directly, and with --share as the proxy says.

    Raises UsageError for --share where the proxy cannot be used.
    """
    if not settings.share:
        return past_proxies()
    httpx = library("httpx", "gradio needs httpx, which is not installed: pip install httpx")
    try:
        httpx.Client().close()
    except Exception as error:  # each part of a wrong address has its own
        raise UsageError(
            f"--share goes through the proxy of the environment, which cannot be used: {error}"
        ) from None
    return nullcontext()


async def _refuse(url: str) -> Any:
    raise UsageError(f"files are uploaded, not fetched: {url[:200]}")


def theme() -> gr.themes.Base:
    """Colours and fonts, which are those of the reader's machine."""
    ink, muted = (LIGHT["ink"], DARK["ink"]), (LIGHT["muted"], DARK["muted"])
    paper = (LIGHT["paper"], DARK["paper"])
    parts = {
        _PAGE: "body_background_fill",
        ink: "body_text_color block_title_text_color button_secondary_text_color table_text_color",
        muted: "body_text_color_subdued block_label_text_color block_info_text_color "
        "input_placeholder_color",
        paper: "background_fill_primary block_background_fill block_label_background_fill "
        "panel_background_fill table_even_background_fill",
        _RAISED: "background_fill_secondary input_background_fill code_background_fill "
        "button_secondary_background_fill table_odd_background_fill",
        _LINE: "block_border_color border_color_primary table_border_color",
        _ACCENT: "border_color_accent input_border_color_focus link_text_color slider_color "
        "button_primary_background_fill",
        ("#dcebf5", "#1f3442"): "color_accent_soft",
        ("#8b8881", "#76767c"): "input_border_color button_secondary_border_color",
        ("#004470", "#a5d8fa"): "button_primary_background_fill_hover",
        _ON_ACCENT: "button_primary_text_color",
        ("#e9e6df", "#303137"): "button_secondary_background_fill_hover",
        ("#fff3ec", "#33231a"): "error_background_fill",
        ("#d05a00", "#f28e4b"): "error_border_color",
        ("#8a3200", "#f7b48a"): "error_text_color",
    }
    both = {
        name + dark: color
        for colors, names in parts.items()
        for name in names.split()
        for dark, color in zip(("", "_dark"), colors, strict=True)
    }
    base = gr.themes.Base(
        primary_hue=_HUE, neutral_hue="stone", font=_SANS, font_mono=_MONO, radius_size="md"
    )
    return base.set(
        **both, color_accent="*primary_600", block_shadow="none", block_border_width="1px"
    )


def css() -> str:
    """The style sheet, with the colours of figures as variables (`--series-0`, `--muted` …)."""
    light = "".join(f"--fig-{role}:{color};" for role, color in LIGHT.items())
    dark = "".join(f"--fig-{role}:{color};" for role, color in DARK.items())
    dark += f"--color-accent:{_ACCENT[1]};"  # for which the theme has no dark value
    colors = f":root{{{light}}}\n:root.dark,:root .dark{{{dark}}}\n"
    return colors + static("app.css") + static("jobs.css")
