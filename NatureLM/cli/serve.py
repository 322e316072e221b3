"""`naturelm serve`: the model as a service over HTTP."""

from __future__ import annotations

from pathlib import Path

from NatureLM.cli import options as of
from NatureLM.progress import say

_SERVICE = "Service"
_ACCESS = "Who may ask, and for what"


def serve(
    *,
    cfg_path: Path | None = of.CFG_PATH,
    model: str | None = of.OPTIONAL_MODEL_NAME,
    revision: str | None = of.REVISION,
    weights_hash: str | None = of.WEIGHTS_HASH,
    merging_alpha: float | None = of.option(
        None,
        "Share of the adapter for requests that name none: 0 is the base language model.",
        of.MODEL,
        show_default="generate.merging_alpha of the configuration, 1.0",
    ),
    device: str = of.DEVICE,
    dtype: str = of.DTYPE,
    quantize: str | None = of.QUANTIZE,
    max_memory: str | None = of.MAX_MEMORY,
    options: list[str] | None = of.OVERRIDES,
    host: str = of.option(
        "127.0.0.1", "Address to listen at; another than this needs an API key.", _SERVICE
    ),
    port: int = of.option(8000, "Port to listen at.", _SERVICE, min=1, max=65535),
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
    from NatureLM.errors import UsageError
    from NatureLM.serve.settings import Limits, ServeSettings, check_exposure, read_api_keys
    from NatureLM.util import library

    of.check_device(device, dtype, quantize)
    for folder in allow_root or ():
        if not folder.is_dir():
            raise UsageError(f"--allow-root {folder}: there is no such folder")
    settings = ServeSettings(
        model=model,
        config=load_config(cfg_path, options or []),
        alpha=merging_alpha,
        device=device,
        dtype=dtype,
        quantize=quantize,
        max_memory=of.memory_size(max_memory),
        host=host,
        port=port,
        api_keys=read_api_keys(api_key or (), api_key_file),
        allow_roots=tuple(allow_root or ()),
        allow_url_hosts=tuple(allow_url_host or ()),
        server_names=tuple(allow_host or ()),
        log_prompts=log_prompts,
        with_page=app,
        revision=revision,
        weights_hash=weights_hash,
        limits=Limits().with_values(limit or ()),
    )
    check_exposure(settings, insecure=insecure)
    for module in ("fastapi", "uvicorn", "multipart", "prometheus_client"):
        library(module, f"naturelm serve needs {module}: pip install 'naturelm-audio[serve]'")
    from NatureLM.serve.server import serve as run

    run(settings, say)
