"""Groups of options become the options of a verb, and the verb gets the group."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from NatureLM.cli.options import expanded


@dataclass(frozen=True)
class Sizes:
    width: Annotated[int, typer.Option(help="How wide.", min=1)] = 3
    names: Annotated[list[str] | None, typer.Option(help="Several.")] = None


def app() -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @expanded
    def show(
        path: Annotated[str, typer.Argument()],
        sizes: Sizes = Sizes(),
        last: Annotated[bool, typer.Option("--last")] = False,
    ) -> None:
        """Show what was given."""
        typer.echo(f"{path} {sizes} {last}")

    return made


def test_the_verb_gets_the_group() -> None:
    given = ["x", "--width", "4", "--names", "a", "--names", "b", "--last"]
    done = CliRunner().invoke(app(), given)
    assert done.output == "x Sizes(width=4, names=['a', 'b']) True\n"
    assert CliRunner().invoke(app(), ["x"]).output == f"x {Sizes()} False\n"
    assert CliRunner().invoke(app(), ["x", "--width", "0"]).exit_code == 2


def test_options_stand_where_the_group_stood() -> None:
    names = list(inspect.signature(app().registered_commands[0].callback or app).parameters)
    assert names == ["path", "width", "names", "last"]
