"""`naturelm inference-app`: the web app."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from NatureLM.cli import options as of
from NatureLM.progress import say

logger = logging.getLogger(__name__)
_PAGE = "Page"


def inference_app(
    cfg_path: of.CfgPath = None,
    model: of.OptionalModelName = None,
    merging_alpha: Annotated[
        float | None,
        of.option(
            "Where the page's slider stands at first: 0 is the base language model, 1 the "
            "adapted one.",
            of.MODEL,
            show_default="generate.merging_alpha of the configuration, 1.0",
        ),
    ] = None,
    device: of.Device = "auto",
    dtype: of.Dtype = "auto",
    options: of.Overrides = None,
    host: Annotated[
        str,
        of.option("Address to listen at; 0.0.0.0 lets others in the network open the page.", _PAGE),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        of.option("Port to listen at.", _PAGE, min=1, max=65535),
    ] = 5001,
    assets_dir: Annotated[
        Path | None,
        of.option(
            "Folder of sample recordings that the page offers.",
            _PAGE,
            show_default="assets, where it is",
        ),
    ] = None,
    runs_dir: Annotated[
        Path,
        of.option(
            "Folder of jobs and experiments; all that is in it can be seen on the page.", _PAGE
        ),
    ] = Path("runs"),
    share: Annotated[
        bool,
        of.option(
            "Let anybody in the internet open the page, through a server of Gradio's makers.", _PAGE
        ),
    ] = False,
) -> None:
    """Open a page on which recordings can be asked about, in the browser, offline.

    naturelm inference-app --cfg-path configs/inference.yml
    """
    from NatureLM.app.page import need_gradio, serve
    from NatureLM.app.settings import AppSettings, folder_of_samples
    from NatureLM.config import load_config

    of.check_dtype(dtype)
    need_gradio()
    serve(
        AppSettings(
            model=model,
            config=load_config(cfg_path, options or []),
            alpha=merging_alpha,
            device=device,
            dtype=dtype,
            host=host,
            port=port,
            share=share,
            assets_dir=folder_of_samples(assets_dir),
            runs_dir=runs_dir,
        ),
        say,
    )
