"""`beans info`: the components of the benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from NatureLM.beans.components import Component


def info(
    component: Annotated[
        str | None, typer.Argument(help="Show this component with its labels.", show_default=False)
    ] = None,
) -> None:
    """Show the components of BEANS-Zero: task, labels, longest clip, metric."""
    from NatureLM.beans import components as data

    if component is None:
        _show_all(list(data.components().values()))
    else:
        _show_one(data.component(component))


def _show_all(components: list[Component]) -> None:
    from NatureLM.cli.tables import print_table

    print_table(
        ["component", "task", "labels", "longest clip", "metric"],
        [
            [one.name, one.task, str(len(one.labels) or "-"), _clip(one), one.metric]
            for one in components
        ],
        right={"labels", "longest clip"},
    )
    typer.echo(f"\n{len(components)} components. `beans info NAME` shows the labels of one.")


def _show_one(one: Component) -> None:
    unknown = f" ({one.unknown_label!r} stands for everything else)" if one.unknown_label else ""
    for name, value in (
        ("component", one.name),
        ("task", one.task),
        ("metric", one.metric),
        ("longest clip", _clip(one)),
        ("recorded at", f"{one.sample_rate} Hz"),
        ("license", one.license),
        ("labels", f"{len(one.labels)}{unknown}" if one.labels else "none: free text"),
    ):
        typer.echo(f"{name:<14}{value}")
    for label in one.labels:
        typer.echo(f"  {label}")


def _clip(one: Component) -> str:
    return "-" if one.max_duration is None else f"{one.max_duration:g} s"
