"""Files on their way to and from the browser, which never learns a path of this computer.

What is sent goes into a folder of its own and belongs to the page that names it first; what is
shown has an address below the folder of the app, such as `visitors/…/picture.png`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from anyio.to_thread import run_sync
from gradio import route_utils, routes
from gradio_client.utils import (  # type: ignore[import-untyped, unused-ignore]
    strip_invalid_filename_characters,
)
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from NatureLM.app.context import AppContext, Visitors
from NatureLM.errors import NatureLMError, UsageError

_API = "/gradio_api"
_FILE = re.compile(rf"{_API}/file[=/](.*)", re.DOTALL)
_MOST_FILES = 1000  # the page sends more in several requests
_LOOK_BYTES = 16 * 10**6
"""How often it is looked whether there is room for more of an upload."""
_MOST_FOLLOWED = 1000
"""Uploads whose progress Gradio remembers."""
_UNREAD_SECONDS = 60.0
_MOST_LISTENERS = 20_000
_MOST_CHARACTERS = 100_000  # of a field; Gradio keeps the last value of each, for each session
_GONE = "This file is not here any more: give it again."


def unfit(why: str) -> NatureLMError:
    """What is said of a Gradio that has changed where it is held here; `why` is said of it."""
    return NatureLMError(f"gradio {gr.__version__} {why}: install gradio>=6.16,<7")


class Page(gr.Blocks):
    """The page, once `begin_files` was called for it."""

    context: AppContext
    _unread: dict[str, tuple[Any, float]]  # session → the oldest message for it, and since when

    async def process_api(  # type: ignore[override]
        self,
        block_fn: Any,
        inputs: list[Any],
        state: Any = None,
        request: Any = None,
        **more: Any,
    ) -> dict[str, Any]:
        """What Gradio does for each event, with paths in place of addresses and back again."""
        visitors = self.context.visitors
        session = getattr(request, "session_hash", None)
        self._forgets_in = asyncio.get_running_loop()
        with visitors.event(session):
            if more.get("iterator") is None:
                inputs = await self._located(session, inputs)
                # Said to whoever does something, not to what the page asks by itself.
                if more.get("event_id") and (why := visitors.why_sent_away(session)):
                    raise gr.Error(why, print_exception=False)
            try:
                answer: dict[str, Any] = await super().process_api(
                    block_fn, inputs, state, request, **more
                )
            finally:
                self._forget_copies(state)
            files: list[Path] = []
            answer["data"] = _with_addresses(answer["data"], visitors, files)
            if files:
                await run_sync(partial(visitors.claim, session, files, is_sent=False))
            return answer

    async def _located(self, session: str | None, inputs: list[Any]) -> list[Any]:
        """Inputs with the paths of what was sent, which belongs to the session from now on.

        Raises gr.Error with a sentence for the visitor.
        """
        visitors, files = self.context.visitors, list[Path]()
        try:
            inputs = _with_paths(inputs, visitors, files)
            if files:
                await run_sync(visitors.claim, session, files)
                visitors.why_sent_away(session)  # a page that begins anew needs not to know
        except UsageError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return inputs

    async def _claim_early(self, session: str | None, data: Any) -> None:
        """Let what was sent belong to a session that waits; what is wrong is said at its turn."""
        files: list[Path] = []
        with suppress(UsageError):
            _with_paths(data, self.context.visitors, files)
        if files:
            claim = partial(self.context.visitors.claim, session, files, is_early=True)
            await run_sync(claim)

    def _forget_copies(self, state: Any) -> None:
        """Let a session forget components that Gradio has made anew for it.

        They have ids of their own: without this each event leaves some, with their values.
        """
        if state is not None:
            for held in (state.config_values, state.blocks_config.blocks):
                for number in held.keys() - self.blocks.keys():
                    del held[number]

    def _forget_unread(self) -> None:
        """Let Gradio forget what it has to say to those who have not listened for some time."""
        now, queue, unread = time.monotonic(), self._queue, {}
        for session, messages in list(queue.pending_messages_per_session.items()):
            events = queue.pending_event_ids_session.get(session, set())
            if messages.qsize() and not events & queue.event_ids_to_events.keys():
                first = messages._queue[0]
                known, since = self._unread.get(session, (first, now))
                unread[session] = first, since if known is first else now
                if now - unread[session][1] >= _UNREAD_SECONDS:
                    del unread[session], queue.pending_messages_per_session[session]
                    queue.pending_event_ids_session.pop(session, None)
        self._unread = unread

    def keep_answering(self) -> None:
        """Let Gradio's queue live on where somebody has left for whom it has a message.

        For all others it would end with a KeyError. What is sent with a question belongs to its
        session as soon as that waits, which may be for longer than files of nobody are kept.
        """
        queue, send, push = self._queue, self._queue.send_message, self._queue.push
        # Gradio forgets the oldest sessions beyond 2000, even those that wait for an answer.
        queue.pending_messages_per_session.max_size = _MOST_LISTENERS

        def send_to_those_who_are_there(event: Any, event_message: Any) -> None:
            if event.session_hash in queue.pending_messages_per_session:
                send(event, event_message)

        async def claim_and_push(body: Any, request: Any, username: str | None) -> Any:
            if queue.max_size is None or len(queue) < queue.max_size:
                await self._claim_early(body.session_hash, body.data)
            return await push(body, request, username)

        queue.send_message = send_to_those_who_are_there  # type: ignore[method-assign]
        queue.push = claim_and_push  # type: ignore[method-assign]

    def forget_idle(self) -> None:
        """Let Gradio forget sessions without an event for so long, names of files, and messages."""
        holder = getattr(self, "state_holder", None)
        loop: asyncio.AbstractEventLoop | None = getattr(self, "_forgets_in", None)
        if holder is None or loop is None or loop.is_closed():
            return

        def forget() -> None:
            now = datetime.now()
            for session, last in list(holder.time_last_used.items()):
                if (now - last).total_seconds() >= self.context.limits.idle_seconds:
                    holder.session_data.pop(session, None)
                    holder.time_last_used.pop(session, None)
            self._forget_unread()
            progress = routes.file_upload_statuses
            for known in (progress._statuses, progress._signals):
                if len(known) > _MOST_FOLLOWED:  # by pages that did not wait for the end
                    known.clear()
            self.upload_file_set.clear()
            for block in self.blocks.values():
                block.temp_files.clear()

        loop.call_soon_threadsafe(forget)  # it is Gradio's thread that reads them


def begin_files(page: Page, context: AppContext) -> None:
    """Let files of a page that is being built, and has all its parts, belong to its visitors.

    Raises NatureLMError where this Gradio takes files in another way.
    """
    if not hasattr(routes, "upload_fn") or not hasattr(route_utils, "GradioMultiPartParser"):
        raise unfit(
            "takes files in another way than by routes.upload_fn, so they could not be kept apart"
        )
    if routes.upload_fn is not _receive:
        _receive.otherwise = routes.upload_fn  # type: ignore[attr-defined]
        routes.upload_fn = _receive
    page.context, page._unread = context, {}
    context.visitors.also_tidy = page.forget_idle
    for block in list(page.blocks.values()):
        if isinstance(block, gr.File):
            claimed: Callable[..., Any] = block.upload
        elif isinstance(block, gr.Audio) and block.interactive is not False:
            claimed = block.stop_recording
        else:
            continue
        # At once: what waits behind questions of others would belong to nobody until then.
        claimed(
            lambda _: None,
            [block],
            None,
            preprocess=False,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


async def _receive(
    request: Any,
    upload_dir: Any,
    max_file_size: float,
    upload_id: str | None,
    force_move: bool = True,
    upload_progress: Any = None,
) -> tuple[list[str], list[str], list[str]]:
    """Gradio's `upload_fn` for a `Page`: addresses of the files, and nothing to be moved."""
    page = request.app.get_blocks()
    if not isinstance(page, Page):
        return await _receive.otherwise(  # type: ignore[attr-defined, no-any-return]
            request, upload_dir, max_file_size, upload_id, force_move, upload_progress
        )
    visitors = page.context.visitors
    if upload_id and upload_progress:
        upload_progress.track(upload_id)
    try:
        with visitors.upload() as folder:
            parser = route_utils.GradioMultiPartParser(
                request.headers,
                _with_room(request, visitors, folder),
                max_files=_MOST_FILES,
                max_fields=0,
                upload_dir=folder,
                max_file_size=max_file_size,
                upload_id=upload_id,
                upload_progress=upload_progress,
            )
            try:
                form = await parser.parse()
            finally:
                for file in parser._files_to_close_on_error:
                    file.close()
            kept = [
                _named(folder, number, part.filename or "", Path(part.file.name))  # type: ignore
                for number, part in enumerate(form.getlist("files"))
            ]
            return [visitors.address(path) for path in kept], [], []
    except UsageError as error:
        raise MultiPartException(str(error)) from None
    except ClientDisconnect:
        raise MultiPartException("The upload was broken off.") from None
    finally:
        if upload_id and upload_progress:
            upload_progress.set_done(upload_id)


def _named(folder: Path, number: int, name: str, file: Path) -> Path:
    """Give an upload, which lies under a name of its own, that of the visitor."""
    plain = strip_invalid_filename_characters(re.split(r"[/\\]", name)[-1])
    if not plain.strip("."):
        plain = "recording"
    (folder / str(number)).mkdir(mode=0o700)
    return file.rename(folder / str(number) / plain)


async def _with_room(request: Any, visitors: Visitors, folder: Path) -> AsyncGenerator[bytes]:
    """What is sent, as long as there is room for it. Raises UsageError."""
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdecimal() else 0
    left = 0
    async for chunk in request.stream():
        if chunk and left <= 0:
            left = min(_LOOK_BYTES, max(expected, len(chunk))) if declared else _LOOK_BYTES
            await run_sync(visitors.make_room, left, folder)
        left -= len(chunk)
        expected -= len(chunk)
        yield chunk


def _with_paths(value: Any, visitors: Visitors, files: list[Path]) -> Any:
    """A copy in which each file has its path; they are put into `files`, too."""
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        raise UsageError(
            f"A field has {len(value):,} characters, and {_MOST_CHARACTERS:,} are the most that "
            "are taken."
        )
    if isinstance(value, list):
        return [_with_paths(one, visitors, files) for one in value]
    if not isinstance(value, dict):
        return value
    address = value.get("path")
    if not isinstance(address, str):
        return {key: _with_paths(one, visitors, files) for key, one in value.items()}
    path = visitors.locate(address) if address.startswith("uploads/") else None
    if path is None:
        raise UsageError(_GONE)
    files.append(path)
    return {**value, "path": str(path), "url": None}


def _with_addresses(value: Any, visitors: Visitors, files: list[Path]) -> Any:
    """A copy without paths; files that Gradio has copied are put into `files`."""
    if isinstance(value, str):
        return visitors.without_paths(value)
    if isinstance(value, (list, tuple)):
        return [_with_addresses(one, visitors, files) for one in value]
    if not isinstance(value, dict):
        return value
    path = value.get("path")
    if isinstance(path, str) and Path(path).is_relative_to(visitors.uploads):
        files.append(Path(path))
    return {key: _with_addresses(one, visitors, files) for key, one in value.items()}


class FilesByAddress:
    """ASGI middleware: gives Gradio the path of a file that is asked for by its address."""

    def __init__(self, app: Any, visitors: Visitors) -> None:
        self._app, self._visitors = app, visitors

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = _FILE.fullmatch(str(scope.get("path", ""))) if scope["type"] == "http" else None
        if asked is not None:
            path = self._visitors.locate(asked[1])
            if path is None:
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b"There is no such file."})
                return
            address = f"{_API}/file={path}"
            scope = {**scope, "path": address, "raw_path": quote(address).encode()}
        await self._app(scope, receive, send)
