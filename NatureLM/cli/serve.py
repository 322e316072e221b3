"""What listens at an address: the model as a service (`serve`), the page on which it is asked
(`inference-app`), the page of reviewers (`review`)."""

from __future__ import annotations

from pathlib import Path

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import say

_SERVICE = "Service"
_ACCESS = "Who may ask, and for what"
_PAGE, _CLIPS = "Page", "Which clips"
_TOKEN = of.option(
    None,
    "Secret that opens the page, as a part of its address. Better in NATURELM_TOKEN, as others "
    "on the computer see what a command is given.",
    _PAGE,
    show_default="a new one wherever others reach the page",
)
_HOST = of.option(
    "127.0.0.1", "Address to listen at; 0.0.0.0 lets others in the network open the page.", _PAGE
)
_PORT = of.option(5001, "Port to listen at.", _PAGE, min=1, max=65535)
_ALLOW_HOST = of.option(
    None,
    "Name of a reverse proxy that visitors reach the page by, such as birds.example.org. May be "
    "repeated.",
    _PAGE,
    metavar="NAME",
)
_NO_TOKEN = of.option(False, "Let everybody who reaches the page open it, without a token.", _PAGE)


def serve(
    *,
    cfg_path: Path | None = of.CFG_PATH,
    weights: of.ConfiguredWeightsOptions,
    merging_alpha: float | None = of.but(
        of.MERGING_ALPHA,
        help="Share of the adapter for requests that name none: 0 is the base language model.",
    ),
    on: of.PrecisionOptions,
    max_memory: str | None = of.MAX_MEMORY,
    options: list[str] | None = of.OVERRIDES,
    host: str = of.but(
        _HOST,
        help="Address to listen at; another than this needs an API key.",
        rich_help_panel=_SERVICE,
    ),
    port: int = of.but(_PORT, default=8000, rich_help_panel=_SERVICE),
    app: bool = of.option(
        False, "Have the web page of inference-app at the same address, for people.", _SERVICE
    ),
    log_prompts: bool = of.option(
        False, "Write prompts and answers to the log, which else has sizes and times.", _SERVICE
    ),
    limit: list[str] | None = of.option(
        None,
        "A limit of requests, such as tokens=2048 or clip_seconds=60. May be given several times.",
        _SERVICE,
        metavar="NAME=VALUE",
    ),
    api_key: list[str] | None = of.option(
        None,
        "A key that requests have to bring, `key` or `name=key`. Other programs of this computer "
        "can read it in the list of processes; better a file, or NATURELM_API_KEYS.",
        _ACCESS,
        metavar="[NAME=]KEY",
    ),
    api_key_file: Path | None = of.option(
        None, "A file of keys, one a line, `key` or `name=key`.", _ACCESS
    ),
    insecure: bool = of.option(
        False, "Let everybody who reaches the address ask without a key.", _ACCESS
    ),
    allow_root: list[Path] | None = of.option(
        None, "A folder whose recordings requests may name by path.", _ACCESS, metavar="FOLDER"
    ),
    allow_url_host: list[str] | None = of.option(
        None,
        "A host from which requests may have recordings fetched (https).",
        _ACCESS,
        metavar="HOST",
    ),
    allow_host: list[str] | None = of.option(
        None,
        "A name under which the service is reached, such as that of a reverse proxy.",
        _ACCESS,
        metavar="NAME",
    ),
) -> None:
    """Answer requests over HTTP: OpenAI's API, BEANS-Next's contract, decisions, windows.

    naturelm serve --cfg-path configs/inference.yml
    """
    from NatureLM.config import load_config
    from NatureLM.serve.settings import Limits, ServeSettings, check_exposure, read_api_keys
    from NatureLM.util import library

    on.check_device()
    for folder in allow_root or ():
        if not folder.is_dir():
            raise UsageError(f"--allow-root {folder}: there is no such folder")
    config = load_config(cfg_path, options or [])
    settings = ServeSettings(
        **{**vars(weights), "model": of.model_name(weights.model, config)},
        **vars(on),
        config=config,
        alpha=merging_alpha,
        max_memory=of.memory_size(max_memory),
        host=host,
        port=port,
        api_keys=read_api_keys(api_key or (), api_key_file),
        allow_roots=tuple(allow_root or ()),
        allow_url_hosts=tuple(allow_url_host or ()),
        server_names=tuple(allow_host or ()),
        log_prompts=log_prompts,
        with_page=app,
        limits=Limits().with_values(limit or ()),
    )
    check_exposure(settings, insecure=insecure)
    for module in ("fastapi", "uvicorn", "multipart", "prometheus_client"):
        library(module, f"naturelm serve needs {module}: pip install 'naturelm-audio[serve]'")
    from NatureLM.serve.server import serve as run

    run(settings, say)


def inference_app(
    *,
    cfg_path: Path | None = of.CFG_PATH,
    weights: of.ConfiguredWeightsOptions,
    merging_alpha: float | None = of.but(
        of.MERGING_ALPHA,
        help="Where the page's slider stands at first: 0 is the base language model, 1 the adapted "
        "one.",
    ),
    on: of.PrecisionOptions,
    options: list[str] | None = of.OVERRIDES,
    host: str = _HOST,
    port: int = _PORT,
    assets_dir: Path | None = of.option(
        None,
        "Folder of sample recordings that the page offers.",
        _PAGE,
        show_default="assets, where it is",
    ),
    runs_dir: Path = of.option(
        Path("runs"),
        "Folder of jobs and experiments; all that is in it can be seen on the page.",
        _PAGE,
    ),
    share: bool = of.option(
        False,
        "Let whoever in the internet has the printed address open the page, through a server of "
        "Gradio's makers, which sees what is sent.",
        _PAGE,
    ),
    allow_host: list[str] | None = _ALLOW_HOST,
    token: str | None = _TOKEN,
    no_token: bool = _NO_TOKEN,
    auth: Path | None = of.option(
        None,
        "File with name:password on each line, of those who may open the page.",
        _PAGE,
        metavar="FILE",
    ),
    disk_quota: float = of.option(
        80.0,
        "GB that files of all visitors may have on the disk together, half of it those of one; "
        "jobs are not counted. Whoever is idle for longest goes where it is full.",
        _PAGE,
        min=0.01,
    ),
) -> None:
    """Open a page on which recordings can be asked about, in the browser, offline.

    naturelm inference-app --cfg-path configs/inference.yml
    """
    from NatureLM.app.settings import (
        AppSettings,
        Limits,
        folder_of_samples,
        need_gradio,
        read_people,
    )
    from NatureLM.config import load_config
    from NatureLM.util import check_place
    from NatureLM.web.guard import token_for

    on.check_precision()
    check_place(runs_dir, "--runs-dir", folder=True)
    people, hosts = read_people(auth), tuple(allow_host or ())
    token = token_for(host, hosts, share=share, given=token, none=no_token, people=bool(people))
    need_gradio()
    from NatureLM.app.page import serve

    config = load_config(cfg_path, options or [])
    settings = AppSettings(
        **{**vars(weights), "model": of.model_name(weights.model, config)},
        **vars(on),
        config=config,
        alpha=merging_alpha,
        host=host,
        port=port,
        share=share,
        assets_dir=folder_of_samples(assets_dir),
        runs_dir=runs_dir,
        hosts=hosts,
        token=token,
        people=people,
        limits=Limits(disk_bytes=round(disk_quota * 1e9)),
    )
    serve(settings, say)


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
    host: str = of.but(
        _HOST, help="Address to listen at; 0.0.0.0 lets others in the network review, too."
    ),
    port: int = of.but(_PORT, default=5002),
    allow_host: list[str] | None = of.but(
        _ALLOW_HOST,
        help="Name of a reverse proxy that reviewers reach the page by. May be repeated.",
    ),
    token: str | None = _TOKEN,
    no_token: bool = of.but(
        _NO_TOKEN, help="Let everybody who reaches the page review, without a token."
    ),
) -> None:
    """Open a page that plays clips and takes verdicts: yes, no or unsure, by keyboard.

    naturelm review clips/

    naturelm review inference_output.jsonl --select uncertain
    """
    from NatureLM.cli.answers import clips_of_answers
    from NatureLM.review.folder import checked_reviewer
    from NatureLM.review.server import ReviewSettings, serve
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
