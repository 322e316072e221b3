"""The page starts whatever proxy is set; a library that lacks another is not said to be missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from NatureLM import util
from NatureLM.app.settings import keep_loopback_direct, need_gradio, past_proxies
from NatureLM.audio import streams
from NatureLM.audio.decode import Recording
from NatureLM.config.schema import RunConfig, TableConfig
from NatureLM.data import dataset
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation import protocols, score
from NatureLM.reports.figures import need_matplotlib
from NatureLM.search import index

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "127.0.0.1:9"
ONE = {"http_proxy": f"http://{NOWHERE}", "HTTPS_PROXY": NOWHERE, "NO_PROXY": "example.org"}
OTHERS = {
    "ALL_PROXY": f"socks://{NOWHERE}",
    "all_proxy": f"socks5://{NOWHERE}",
    "HTTP_PROXY": "http://[::1",
    "no_proxy": "[::1],fd00::/8",
}
SCRIPT = """
import os, sys, urllib.request
from pathlib import Path
from NatureLM.app.settings import need_gradio
before = dict(os.environ)
need_gradio()
from tests.web_app import FakePipeline, running
with running(Path(sys.argv[1]), FakePipeline()) as app:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert b"NatureLM" in direct.open(app.address, timeout=20).read()
changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
print(*sorted(name for name in changed if "proxy" in name.lower()), os.environ["NO_PROXY"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("proxies", [ONE, OTHERS], ids=["http", "others"])
def test_the_page_starts_where_a_proxy_is_set(tmp_path: Path, proxies: dict[str, str]) -> None:
    pytest.importorskip("gradio")
    plain = {n: value for n, value in os.environ.items() if not n.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**plain, **proxies, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    given = proxies.get("no_proxy", proxies.get("NO_PROXY"))
    own = "localhost,127.0.0.1,::1"
    assert done.stdout.split() == ["NO_PROXY", "no_proxy", f"{given},{own}"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {}),
        ({"HTTP_PROXY": "p"}, {"HTTP_PROXY": "p", "all": "localhost,127.0.0.1,::1,192.168.0.2"}),
        ({"no_proxy": "a, b,"}, {"all": "a,b,localhost,127.0.0.1,::1,192.168.0.2"}),
        ({"NO_PROXY": "::1,x"}, {"all": "::1,x,localhost,127.0.0.1,192.168.0.2"}),
        ({"NO_PROXY": "*"}, {"all": "*"}),
    ],
)
def test_requests_to_itself_go_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], kept: dict[str, str]
) -> None:
    names = [name for name in os.environ if name.lower().endswith("_proxy")]
    for name in {*names, "NO_PROXY", "no_proxy"}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def proxies() -> dict[str, str]:
        return {n: value for n, value in os.environ.items() if n.lower().endswith("_proxy")}

    with past_proxies():
        assert proxies() == {"NO_PROXY": "*"}
    assert proxies() == given
    keep_loopback_direct("192.168.0.2")
    both = kept.pop("all", None)
    assert proxies() == {**kept, **({"NO_PROXY": both, "no_proxy": both} if both else {})}


def test_sharing_through_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    from NatureLM.app.page import _ways_out
    from NatureLM.app.settings import AppSettings

    monkeypatch.setenv("ALL_PROXY", f"socks://{NOWHERE}")
    with pytest.raises(UsageError, match="--share goes through the proxy of the environment"):
        _ways_out(AppSettings(share=True))


def no_accelerate(_: Path) -> None:
    from NatureLM.training.optim import make_accelerator

    make_accelerator(RunConfig())


def no_tracker(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> object:
        from NatureLM.training.outputs import make_tracker

        return make_tracker(name, folder)

    return make


def no_av(folder: Path) -> None:
    """`streams` imports it itself, for the sake of its types."""
    path = folder / "phone.m4a"
    path.write_bytes(b"\0\0\0\x18ftypM4A \0\0\0\0isommp42" + bytes(100))
    Recording(path)


def saved(folder: Path) -> None:
    (folder / "state.json").write_text("{}", encoding="utf-8")
    dataset._saved_dataset(folder)


def split(folder: Path) -> object:
    (folder / "x.parquet").write_bytes(b"")
    return dataset._load_any(TableConfig(path=str(folder)), folder)


PLACES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "page": ("gradio", lambda _: need_gradio()),
    "figures": ("matplotlib", lambda _: need_matplotlib()),
    "distances": ("rapidfuzz", lambda _: protocols._distances(["a"], ["b"], None)),
    "training": ("accelerate", no_accelerate),
    "trackio": ("trackio", no_tracker("trackio")),
    "tensorboard": ("tensorboard", no_tracker("tensorboard")),
    "index": ("pyarrow", lambda _: index._import_pyarrow()),
    "parquet": ("pyarrow", lambda _: dataset.parquet_file("x.parquet", None)),
    "saved": ("datasets", saved),
    "arrow": ("datasets", lambda folder: dataset._arrow_files([], "x", folder)),
    "split": ("datasets", split),
    "phone": ("av", no_av),
}
FAULTS: dict[str, Callable[[str], tuple[ImportError, str]]] = {
    "absent": lambda name: (
        ModuleNotFoundError(f"No module named {name!r}", name=name),
        r"needs|names|install",
    ),
    "a part is absent": lambda name: (
        ModuleNotFoundError(f"No module named '{name}.part'", name=f"{name}.part"),
        r"needs|names|install",
    ),
    "another": lambda name: (
        ModuleNotFoundError("No module named 'socksio.x'", name="socksio.x"),
        f"{name} needs socksio, which is not installed: pip install socksio",
    ),
    "other release": lambda name: (
        ImportError("cannot import name 'a' from 'b'\nmore", name="b"),
        f"{name} is installed, and cannot be loaded: cannot import name 'a' from 'b'",
    ),
    "no name": lambda name: (
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
        f"{name} is installed, and cannot be loaded: Using SOCKS proxy",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: str
) -> None:
    name, use = PLACES[place]
    error, said = FAULTS[fault](name)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(util, "import_module", fail)
    monkeypatch.setattr(streams, "FfmpegFile", fail)
    with pytest.raises(NatureLMError, match=said) as caught:
        use(tmp_path)
    is_absent = fault in ("absent", "a part is absent")
    hint = {"av": "PyAV, which is not installed"}.get(name, "pip install")
    assert (hint in str(caught.value)) >= is_absent
    assert ("cannot be loaded" in str(caught.value)) == (not is_absent and fault != "another")


def test_scores_are_written_without_a_library_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ImportError("libarrow.so: cannot open shared object file")

    pytest.importorskip("pyarrow")
    monkeypatch.setattr(util, "import_module", fail)
    assert score._write_table(tmp_path / "t", ["a"], [[1]]) == [tmp_path / "t.csv"]
    assert "no tables as Parquet: pyarrow is installed, and cannot be loaded" in caplog.text


def test_no_other_place_takes_a_failed_import_for_a_missing_library() -> None:
    found = {
        path.relative_to(ROOT / "NatureLM").as_posix()
        for path in (ROOT / "NatureLM").rglob("*.py")
        if re.search(r"except .*(ImportError|ModuleNotFoundError)", path.read_text("utf-8"))
    }
    of_python_itself = {"app/page.py", "models/checkpoint/peft_io.py"}
    assert found == {"util.py", "storage.py", "audio/decode.py"} | of_python_itself
