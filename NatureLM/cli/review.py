"""`naturelm review`: people listen to clips and say whether answers are right."""

from __future__ import annotations

from pathlib import Path

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import say

_PAGE, _CLIPS = "Page", "Which clips"


def review(
    folder: Path = of.argument(
        ...,
        "Folder of clips that `naturelm segments` made; or answers, of which clips are cut first.",
        "FOLDER|ANSWERS",
    ),
    *,
    select: str | None = of.option(
        None,
        "Of answers: which are cut, into a folder beside them.",
        _CLIPS,
        metavar="balanced|random|top|uncertain|diverse",
        show_default="balanced",
    ),
    per_species: int = of.option(
        20, "Of answers: so many clips of each species at most.", _CLIPS, min=1
    ),
    reviewer: str | None = of.option(
        None,
        "Whose verdicts they are; each reviewer has verdicts of their own.",
        _PAGE,
        show_default="the page asks",
    ),
    host: str = of.option(
        "127.0.0.1",
        "Address to listen at; 0.0.0.0 lets others in the network review, too.",
        _PAGE,
    ),
    port: int = of.option(5002, "Port to listen at.", _PAGE, min=1, max=65535),
    allow_host: list[str] | None = of.option(
        None,
        "Name of a reverse proxy that reviewers reach the page by. May be repeated.",
        _PAGE,
        metavar="NAME",
    ),
    token: str | None = of.option(
        None,
        "Secret that opens the page, as a part of its address. Better in NATURELM_TOKEN, as others "
        "on the computer see what a command is given.",
        _PAGE,
        show_default="a new one wherever others reach the page",
    ),
    no_token: bool = of.option(
        False, "Let everybody who reaches the page review, without a token.", _PAGE
    ),
) -> None:
    """Open a page that plays clips and takes verdicts: yes, no or unsure, by keyboard.

    naturelm review clips/

    naturelm review inference_output.jsonl --select uncertain
    """
    from NatureLM.cli.events import clips_of_answers
    from NatureLM.review.server import ReviewSettings, serve
    from NatureLM.review.verdicts import checked_reviewer
    from NatureLM.web.guard import token_for

    hosts = tuple(allow_host or ())
    if select is not None and folder.is_dir():
        raise UsageError(
            f"--select is for answers, of which clips are cut; {folder} is a folder of clips "
            "already"
        )
    settings = ReviewSettings(
        folder=folder
        if folder.is_dir()
        else clips_of_answers(folder, select or "balanced", per_species),
        reviewer=None if reviewer is None else checked_reviewer(reviewer),
        host=host,
        port=port,
        hosts=hosts,
        token=token_for(host, hosts, share=False, given=token, none=no_token, people=False),
    )
    serve(settings, say)
