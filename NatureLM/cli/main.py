"""Command groups whose verbs are imported only when they are called.

Entry points of the commands `naturelm` and `beans`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import typer
from typer.core import TyperGroup

import NatureLM
from NatureLM.cli.errors import friendly_errors, make_output_robust
from NatureLM.cli.progress import notes_shown

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # Scripts for the reference write --output_path and --window_length_seconds.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


@dataclass(frozen=True)
class Command:
    """A verb of a command.

    target: `module:function`
    summary: its line in the help
    notes: how notes and warnings of the package are shown, with {} for the text
    """

    target: str
    summary: str
    notes: str = "Note: {}"

    def function(self) -> Callable[..., Any]:
        """Import the function that does it; while it runs, what the package logs is shown."""
        module, _, name = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)

        @wraps(function)
        def called(*args: Any, **options: Any) -> Any:
            with notes_shown(self.notes):
                return function(*args, **options)

        return called


class LazyGroup(TyperGroup):
    """Holds a stub for each verb; the help shows the stubs, calling a verb imports it."""

    _verbs: dict[str, Command]
    _default: str | None = None
    _is_listing = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options without a verb are those of the default verb."""
        own = ("-h", "--help", "--version")
        if self._default is not None and args and args[0].startswith("-") and args[0] not in own:
            args = [self._default, *args]
        return list(super().parse_args(ctx, args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The real command, or its stub while the help is made."""
        if cmd_name not in self._verbs or self._is_listing:
            return super().get_command(ctx, cmd_name)
        return single_command(cmd_name, self._verbs[cmd_name])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help without importing any verb."""
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; our own errors end as a message and an exit code."""
        with friendly_errors():
            return super().invoke(ctx)


def group(
    name: str, description: str, verbs: dict[str, Command], default: str | None = None
) -> typer.Typer:
    """A command with verbs and `--version`; `default` is the verb of a call that names none."""
    kind = type("Group", (LazyGroup,), {"_verbs": verbs, "_default": default})
    app = typer.Typer(
        name=name,
        cls=kind,
        help=description,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_SETTINGS,
    )

    @app.callback()
    def about(
        version: bool = typer.Option(
            False, "--version", help="Show the version.", callback=_version(name), is_eager=True
        ),
    ) -> None:
        pass

    for verb_name, verb in verbs.items():
        app.command(verb_name, help=verb.summary)(_stub)
    return app


def single_command(name: str, verb: Command) -> Any:
    """The command of one verb."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, context_settings=_SETTINGS)(verb.function())
    return typer.main.get_command(app)


def run_verb(name: str, verb: Command, args: Sequence[str] | None = None) -> None:
    """Run one verb as a program of its own; args None takes those of the process."""
    with friendly_errors():
        single_command(name, verb).main(args=None if args is None else list(args))


def _stub() -> None:
    """Stands for a verb in the help."""


def _version(name: str) -> Callable[[bool], None]:
    def show(asked: bool) -> None:
        if asked:
            typer.echo(f"{name} {NatureLM.__version__}")
            raise typer.Exit

    return show


NATURELM_VERBS = {
    "infer": Command("NatureLM.cli.infer:infer", "Ask questions about recordings."),
    "inference-app": Command(
        "NatureLM.cli.inference_app:inference_app", "Ask questions on a page in the browser.", "{}"
    ),
    "embed": Command("NatureLM.cli.search:embed", "Turn windows of recordings into vectors."),
    "search": Command("NatureLM.cli.search:search", "Find windows that sound like a clip."),
    "export": Command(
        "NatureLM.cli.export:export", "Turn answers into a table for spreadsheets or Raven."
    ),
    "schema": Command(
        "NatureLM.cli.models:schema", "Print the JSON Schema of configuration files."
    ),
    "models": Command("NatureLM.cli.models:models", "List the models that can be named."),
    "train": Command("NatureLM.cli.train:train", "Train or fine-tune a model."),
    "convert": Command(
        "NatureLM.cli.merge:convert", "Turn an old .pth checkpoint into safetensors."
    ),
    "merge": Command("NatureLM.cli.merge:merge", "Write the adapter into the weights of a model."),
    "tune-alpha": Command(
        "NatureLM.cli.tune_alpha:tune_alpha",
        "Find the α to use on recordings with known answers.",
        "{}",
    ),
    "calibrate": Command(
        "NatureLM.cli.calibrate:calibrate", "Make confidences mean what they say.", "{}"
    ),
    "report": Command(
        "NatureLM.cli.score:report", "Draw answers: a page with figures, tables and answers."
    ),
    "cache": Command("NatureLM.cli.models:cache", "Show or clear audio embeddings kept on disk."),
}

BEANS_VERBS = {
    "run": Command("NatureLM.cli.beans:run", "Ask a model about samples (the default verb)."),
    "info": Command("NatureLM.cli.beans:info", "Show the components of BEANS-Zero."),
    "score": Command("NatureLM.cli.score:score", "Score answers, ours or anybody's."),
    "compare": Command("NatureLM.cli.score:compare", "Compare two runs sample by sample."),
    "report": Command("NatureLM.cli.score:report", "The same as naturelm report."),
    "fetch": Command("NatureLM.cli.beans:fetch", "Fetch components of BEANS-Zero."),
    "make-mini": Command("NatureLM.cli.beans:make_mini", "Make a benchmark of clips of your own."),
}

naturelm_app = group(
    "naturelm",
    "Ask questions of animal sound: audio and a text prompt in, text out.",
    NATURELM_VERBS,
)
beans_app = group(
    "beans",
    "BEANS-Zero, the zero-shot benchmark of animal sound.",
    BEANS_VERBS,
    default="run",
)


def naturelm() -> None:
    """The command `naturelm`."""
    make_output_robust()
    naturelm_app()


def beans() -> None:
    """The command `beans`."""
    make_output_robust()
    beans_app()


def infer_main() -> None:
    """`naturelm infer` as a program of its own."""
    make_output_robust()
    run_verb("infer", NATURELM_VERBS["infer"])


def beans_main() -> None:
    """The command `beans` as a program of its own."""
    beans()
