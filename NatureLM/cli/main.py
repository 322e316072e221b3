"""The programs `naturelm` and `beans`: their commands, which are imported only when called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import typer
from typer.core import TyperGroup

import NatureLM
from NatureLM.cli.options import expanded
from NatureLM.cli.terminal import friendly_errors, notes_shown, run_program

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # Scripts for the reference write --output_path and --window_length_seconds.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


@dataclass(frozen=True)
class Command:
    """A command of a program.

    target: `module:function` in `NatureLM.cli`; its parameters are the options
    summary: its line in the help
    notes: how notes and warnings of the package are shown, with {} for the text
    """

    target: str
    summary: str
    notes: str = "Note: {}"

    def function(self) -> Callable[..., Any]:
        """Import the function that does it; while it runs, what the package logs is shown."""
        module, _, name = self.target.partition(":")
        function = expanded(getattr(importlib.import_module(f"NatureLM.cli.{module}"), name))

        @wraps(function)
        def called(**options: Any) -> Any:
            with notes_shown(self.notes):
                return function(**options)

        return called


NATURELM_COMMANDS = {
    "infer": Command("infer:infer", "Ask questions about recordings."),
    "survey": Command("survey:survey", "Ask a questionnaire of recordings: a row a window."),
    "inference-app": Command(
        "serve:inference_app", "Ask questions on a page in the browser.", "{}"
    ),
    "serve": Command("serve:serve", "Answer requests over HTTP as OpenAI does.", "{}"),
    "embed": Command("search:embed", "Turn windows of recordings into vectors."),
    "search": Command("search:search", "Find windows that sound like a clip."),
    "teach": Command("search:teach", "Teach a classifier by a few labelled sounds."),
    "manifest": Command("archive:manifest", "List recordings with what their headers say."),
    "merge-runs": Command("archive:merge_runs", "Join the answers of shards into one file."),
    "events": Command("answers:events", "Join neighbouring windows with the same answer."),
    "segments": Command("answers:segments", "Cut clips of answers for review."),
    "review": Command("serve:review", "Listen to clips and say which answers are right.", "{}"),
    "export": Command(
        "answers:export", "Turn answers into tables, or a model into a folder, of other programs."
    ),
    "schema": Command("models:schema", "Print the JSON Schema of configuration files."),
    "models": Command("models:models", "List the models that can be named."),
    "train": Command("train:train", "Train or fine-tune a model."),
    "convert": Command("models:convert", "Turn an old .pth checkpoint into safetensors."),
    "merge": Command("models:merge", "Write the adapter into the weights of a model."),
    "quantize": Command("models:quantize", "Write a model with weights of 8 or 4 bits."),
    "tune-alpha": Command(
        "tune:tune_alpha", "Find the α to use on recordings with known answers.", "{}"
    ),
    "calibrate": Command("tune:calibrate", "Make confidences mean what they say.", "{}"),
    "report": Command("score:report", "Draw answers: a page with figures, tables and sound."),
    "cache": Command("models:cache", "Show or clear audio embeddings kept on disk."),
}

BEANS_COMMANDS = {
    "run": Command("beans:run", "Ask a model about samples (the default verb)."),
    "info": Command("beans:info", "Show the components of BEANS-Zero."),
    "score": Command("score:score", "Score answers, ours or anybody's."),
    "compare": Command("score:compare", "Compare two runs sample by sample."),
    "report": Command("score:report", "The same as naturelm report."),
    "fetch": Command("beans:fetch", "Fetch components of BEANS-Zero."),
    "make-mini": Command("beans:make_mini", "Make a benchmark of clips of your own."),
}


class LazyGroup(TyperGroup):
    """Holds a stub for each command; the help shows the stubs, calling a command imports it."""

    _commands: dict[str, Command]
    _default: str | None = None
    _is_listing = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options without a command are those of the default command."""
        own = ("-h", "--help", "--version")
        if self._default is not None and args and args[0].startswith("-") and args[0] not in own:
            args = [self._default, *args]
        return list(super().parse_args(ctx, args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The real command, or its stub while the help is made."""
        if cmd_name not in self._commands or self._is_listing:
            return super().get_command(ctx, cmd_name)
        return single_command(cmd_name, self._commands[cmd_name])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help without importing any command."""
        self._is_listing = True
        super().format_help(ctx, formatter)
        self._is_listing = False

    def invoke(self, ctx: Any) -> Any:
        """Run a command; our own errors end as a message and an exit code."""
        with friendly_errors():
            return super().invoke(ctx)


def group(
    name: str, description: str, commands: dict[str, Command], default: str | None = None
) -> typer.Typer:
    """A program with commands and `--version`; `default` is the command of a call without one."""
    app = typer.Typer(
        name=name,
        cls=type("Group", (LazyGroup,), {"_commands": commands, "_default": default}),
        help=description,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_SETTINGS,
    )

    def show_version(asked: bool) -> None:
        if asked:
            typer.echo(f"{name} {NatureLM.__version__}")
            raise typer.Exit

    @app.callback()
    def about(
        version: bool = typer.Option(
            False, "--version", help="Show the version.", callback=show_version, is_eager=True
        ),
    ) -> None:
        pass

    for command_name, command in commands.items():
        app.command(command_name, help=command.summary)(lambda: None)
    return app


def single_command(name: str, command: Command) -> Any:
    """One command, imported."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, context_settings=_SETTINGS)(command.function())
    return typer.main.get_command(app)


def run_command(name: str, command: Command) -> None:
    """Run one command as a program of its own."""

    def main() -> None:
        with friendly_errors():
            single_command(name, command).main()

    run_program(main)


naturelm_app = group(
    "naturelm",
    "Ask questions of animal sound: audio and a text prompt in, text out.",
    NATURELM_COMMANDS,
)
beans_app = group(
    "beans",
    "BEANS-Zero, the zero-shot benchmark of animal sound.",
    BEANS_COMMANDS,
    default="run",
)


def naturelm() -> None:
    """The program `naturelm`."""
    run_program(naturelm_app)


def beans() -> None:
    """The program `beans`."""
    run_program(beans_app)


def infer_main() -> None:
    """`naturelm infer` as a program of its own."""
    run_command("infer", NATURELM_COMMANDS["infer"])
