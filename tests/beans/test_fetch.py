"""`beans fetch` from a stand-in for the Hub: only what is asked for, in pieces that stay whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import call
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import CliRunner, Result

from NatureLM.beans.fetch import RemoteDataset
from NatureLM.cli.main import beans_app
from NatureLM.config.schema import TableSource
from NatureLM.data.sample import open_samples
from NatureLM.errors import NatureLMError, UsageError

pyarrow = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")
REPOSITORY = "EarthSpeciesProject/BEANS-Zero"
NEWEST = "a" * 40
NAMES = ["esc50"] * 4 + ["cbi"] * 3 + ["watkins"] * 5  # in groups of 4: the second one is mixed


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the Hub: two files on this disk; sizes of what is read of them."""
    folder = tmp_path / "hub" / "datasets" / REPOSITORY / "data"
    folder.mkdir(parents=True)
    for part, names in enumerate((NAMES, ["cbi"] * 2)):
        rows = [_row(f"{part}-{number}", name) for number, name in enumerate(names)]
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, folder / f"test-{part}.parquet", row_group_size=4)
    sizes: list[int] = []

    class Hub(LocalFileSystem):  # type: ignore[misc]
        cachable = False

        def glob(self, pattern: str, **more: Any) -> list[str]:
            pattern = pattern.replace(f"@{NEWEST}/", "/")
            return list(super().glob(f"{tmp_path}/hub/{pattern}", **more))

        def open(self, path: str, *args: Any, **more: Any) -> Any:
            file = super().open(path, *args, **more)
            whole = file.read

            def count(*size: int) -> bytes:
                data: bytes = whole(*size)
                sizes.append(len(data))
                return data

            file.read = count
            return file

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> SimpleNamespace:
            if not (tmp_path / "hub" / "datasets" / name).is_dir():
                raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
            return SimpleNamespace(sha=revision or NEWEST)

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.chdir(tmp_path)
    return sizes


def _row(name: str, dataset: str) -> dict[str, Any]:
    sound = np.random.default_rng(0).random(20000)  # which no compression makes small
    return {"audio": sound, "id": name, "dataset_name": dataset, "output": "x", "task": ""}


def invoke(*args: str, answer: str | None = None) -> Result:
    words = ["fetch", "--output-path", "here", *args]
    return CliRunner().invoke(beans_app, words, input=answer)


def fetch(*args: str, ends: int = 0) -> str:
    return call(*args, ends=ends, by=invoke)


def fetched() -> dict[str, list[str]]:
    samples = open_samples(TableSource(path="here")).samples
    found: dict[str, list[str]] = {}
    for one in samples:
        found.setdefault(one.dataset_name, []).append(one.id)
    return found


def recorded() -> Any:
    return json.loads(Path("here", "source.json").read_text())


def test_only_what_is_asked_for_comes(read: list[int]) -> None:
    done = fetch("--components", "watkins,cbi", "--yes")
    assert fetched() == {
        "cbi": ["0-4", "0-5", "0-6", "1-0", "1-1"],
        "watkins": ["0-7", "0-8", "0-9", "0-10", "0-11"],
    }
    assert "cbi, watkins: " in done
    assert "beans --data-path here" in done


def test_labels_and_sizes_are_known_without_the_sound(read: list[int]) -> None:
    pieces = RemoteDataset(REPOSITORY).row_groups(["esc50", "cbi"])
    looked_at = sum(read)
    shelf_bytes = sum(piece.bytes for piece in RemoteDataset(REPOSITORY).row_groups(None))
    assert looked_at > 0
    assert [(piece.components, piece.is_mixed) for piece in pieces] == [
        (("esc50",), False),
        (("cbi",), True),
        (("cbi",), False),
    ]
    assert sum(piece.bytes for piece in pieces) < shelf_bytes
    assert looked_at < shelf_bytes / 4  # the ends of the files, and one column


@pytest.mark.parametrize(("answer", "comes"), [("y\n", True), ("n\n", False), (None, False)])
def test_it_asks_first(answer: str | None, comes: bool, read: list[int]) -> None:
    done = invoke("--components", "esc50", answer=answer)
    assert done.stdout.startswith("esc50: ")
    assert " kB, into here" in done.stdout
    assert (done.exit_code == 0) == comes == Path("here").exists()
    assert comes or "--yes fetches without asking" in done.stderr


def test_it_goes_on_where_it_was_stopped(read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RemoteDataset.fetch
    came: list[int] = []

    def stops(self: RemoteDataset, piece: Any, folder: Path) -> None:
        if len(came) == 1:
            raise NatureLMError("the line is cut")
        came.append(piece.group)
        whole(self, piece, folder)

    monkeypatch.setattr(RemoteDataset, "fetch", stops)
    fetch("--components", "watkins", "--yes", ends=1)
    first = {path: path.stat().st_mtime_ns for path in Path("here").rglob("*.parquet")}
    assert len(first) == 1
    monkeypatch.setattr(RemoteDataset, "fetch", whole)
    done = fetch("--components", "watkins", "--yes")
    assert "still to fetch" in done
    assert len(fetched()["watkins"]) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    again = fetch("--components", "watkins")  # nothing is left to ask about
    assert again.endswith("beans --data-path here --output-path answers.jsonl\n")


def test_a_piece_that_is_half_written_does_not_count(read: list[int]) -> None:
    fetch("--components", "esc50", "--yes")
    (path,) = Path("here").rglob("*.parquet")
    path.rename(path.with_name(f".{path.name}.partial"))
    fetch("--components", "esc50", "--yes")
    assert fetched() == {"esc50": ["0-0", "0-1", "0-2", "0-3"]}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--components", "esc5"], "no component 'esc5'; did you mean esc50?"),
        (["--components", " ,"], "--components is empty"),
        (["--components", "hiceas"], "has no component 'hiceas'"),
        (["--repository", "owner/nothing"], "owner/nothing: on the Hugging Face Hub no dataset"),
    ],
)
def test_what_is_not_there_is_said(args: list[str], words: str, read: list[int]) -> None:
    assert words in fetch(*args, "--yes", ends=2)
    assert not Path("here").exists()


def test_without_a_network_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        def dataset_info(self, name: str, revision: str | None) -> SimpleNamespace:
            raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Offline)
    done = fetch("--components", "esc50", ends=2)
    for words in ("cannot be reached (no route to host)", "copy the folder here", "--data-path"):
        assert words in done


def test_a_full_disk_is_seen_before(read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage)
    done = fetch("--components", "esc50", "--yes", ends=2)
    assert "and the disk has 0 kB left" in done


def test_data_that_stop_coming(read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = RemoteDataset(REPOSITORY)
    piece = shelf.row_groups(["esc50"])[0]

    class Cut:
        def read_row_group(self, group: int) -> Any:
            raise OSError("connection reset")

    monkeypatch.setattr(shelf, "_open", lambda file: Cut())
    with pytest.raises(NatureLMError, match=r"\(connection reset\).*the same command goes on"):
        shelf.fetch(piece, Path("here"))


def test_a_folder_that_cannot_be_made(read: list[int], tmp_path: Path) -> None:
    (tmp_path / "here").write_text("a file")
    shelf = RemoteDataset(REPOSITORY)
    with pytest.raises(UsageError, match="cannot be written"):
        shelf.fetch(shelf.row_groups(["esc50"])[0], tmp_path / "here")


@pytest.mark.parametrize("given", [["--revision", "v2"], ["--repository", f"{REPOSITORY}@v2"]])
def test_a_revision_of_the_dataset_is_fetched(read: list[int], tmp_path: Path, given: Any) -> None:
    hub = tmp_path / "hub" / "datasets"
    (hub / f"{REPOSITORY}@v2" / "data").mkdir(parents=True)
    (hub / REPOSITORY / "data" / "test-1.parquet").rename(
        hub / f"{REPOSITORY}@v2" / "data" / "test-1.parquet"
    )
    fetch("--yes", *given)
    assert fetched() == {"cbi": ["1-0", "1-1"]}
    assert recorded() == {"repository": REPOSITORY, "revision": "v2"}
    assert "All is there" in fetch("--yes"), "it goes on with the commit that it began with"
    other = fetch("--yes", "--revision", NEWEST, ends=2)
    assert f"holds rows of the commit v2, and the one asked for is {NEWEST}" in other
    assert recorded()["revision"] == "v2"
    other = fetch("--yes", "--repository", "somebody/else", ends=2)
    assert f"holds rows of '{REPOSITORY}', and somebody/else is asked for" in other


def test_the_commit_of_what_is_fetched_is_recorded(read: list[int]) -> None:
    fetch("--yes")
    assert recorded() == {"repository": REPOSITORY, "revision": NEWEST}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--repository", f"{REPOSITORY}@v1", "--revision", "v2"], "of two revisions"),
        (["--revision", "../../x"], "must be a commit"),
    ],
)
def test_a_revision_that_cannot_be_is_refused(read: list[int], given: Any, words: str) -> None:
    assert words in fetch("--yes", *given, ends=1)
