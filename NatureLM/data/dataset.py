"""Datasets with the sound inside: `save_to_disk` folders, Arrow and Parquet files, and the Hub.

Labels are read without the sound, and the sound row by row as it is stored: decoding is the work of
`NatureLM.audio`.
"""

from __future__ import annotations

import bisect
import os
import re
import tempfile
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.files import as_on_disk
from NatureLM.audio.windows import read_clip
from NatureLM.config.schema import TableConfig
from NatureLM.data.table import Columns, DataError, Row
from NatureLM.errors import UsageError
from NatureLM.util import library, parse_json

AUDIO = "audio"

_BATCH = 1000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")  # with a revision or without
_SAVED = ("state.json", "dataset_dict.json")
_UNFINISHED = "is damaged or was not downloaded to its end: fetch it again"
_NEEDED = "needs libraries that are not installed: pip install 'naturelm-audio[beans]'"


class ArrowRows:
    """A dataset of the library `datasets`, memory-mapped.

    name: what messages call it
    folder: where relative paths in it start from
    audio: the column with sound
    notes: what to say about how it was read
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        folder: Path | None,
        *,
        audio: str = AUDIO,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.folder, self.notes = name, folder, notes
        self.has_audio = audio in dataset.column_names
        self._audio = audio
        self._dataset = dataset
        # In this format cells come as they are stored: nothing is decoded.
        self._arrow = dataset.with_format("arrow")
        self._sound: Any = self._arrow.select_columns([audio]) if self.has_audio else None

    def light(self, columns: Container[str] | None = None) -> Iterator[Row]:
        """Every row without its sound, which is not read; of `columns` only, if they are given.

        Class labels are the names behind the numbers that are stored.
        """
        names = _wanted(self._dataset.column_names, self._audio, columns)
        classes = {name: _classes(self._dataset.features[name]) for name in names}
        for table in self._arrow.select_columns(names).iter(batch_size=_BATCH) if names else ():
            yield from _with_class_names(table, classes)

    def audio(self, index: int) -> Any:
        """The sound of a row as it is stored."""
        return _cell(self._sound[index].column(self._audio)[0])


class ParquetRows:
    """Parquet files, here or on the Hub; of the sound one row group at a time is in memory.

    filesystem: where the files are; None is this machine
    """

    def __init__(
        self,
        files: Sequence[str],
        name: str,
        folder: Path | None,
        filesystem: Any = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.folder, self.notes = name, folder, notes
        self._files = [parquet_file(file, filesystem) for file in files]
        self._groups = [
            (file, group) for file in self._files for group in range(file.metadata.num_row_groups)
        ]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self.has_audio = all(AUDIO in file.schema_arrow.names for file in self._files)
        self._lock = threading.Lock()
        self._held: tuple[int, Any] | None = None

    def light(self, columns: Container[str] | None = None) -> Iterator[Row]:
        """Every row without its sound, which is not fetched; of `columns` only, if given.

        Class labels are the names behind the numbers that are stored.
        """
        for file in self._files:
            schema = file.schema_arrow
            for name in schema.names:
                if schema.names.count(name) > 1:
                    raise DataError(f"{self.name}: the column {name!r} is there twice")
            names = _wanted(schema.names, AUDIO, columns)
            features = _stored_features(schema.metadata or {})
            classes = {name: _classes(features.get(name)) for name in names}
            for batch in file.iter_batches(batch_size=_BATCH, columns=names):
                yield from _with_class_names(batch, classes)

    def audio(self, index: int) -> Any:
        """The sound of a row as it is stored."""
        number = bisect.bisect_right(self._starts, index) - 1
        with self._lock:
            if self._held is None or self._held[0] != number:
                file, group = self._groups[number]
                self._held = (number, file.read_row_group(group, columns=[AUDIO]).column(AUDIO))
            return _cell(self._held[1][index - self._starts[number]])


DatasetRows: TypeAlias = ArrowRows | ParquetRows


def _wanted(there: Sequence[str], audio: str, columns: Container[str] | None) -> list[str]:
    return [n for n in there if n != audio and (columns is None or n in columns)]


def _classes(feature: Any) -> list[str] | None:
    """The names behind the numbers of a class label, or of a list of them.

    feature: of the library `datasets`, or as it stands in the metadata of Parquet files
    """
    if isinstance(feature, list):  # older versions write a list of one feature
        return _classes(feature[0]) if len(feature) == 1 else None
    if isinstance(feature, Mapping):
        inner = feature.get("feature")
        return _classes(inner) if inner is not None else list(feature.get("names") or ()) or None
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None


def _stored_features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The features that the library `datasets` writes into the schema of Parquet files."""
    try:
        features = parse_json(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _with_class_names(batch: Any, classes: Mapping[str, list[str] | None]) -> Iterator[Row]:
    for row in batch.to_pylist():
        yield {name: _class_name(value, classes[name]) for name, value in row.items()}


def _class_name(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    return names[value] if value >= 0 else None  # the library's mark of no label


def _cell(scalar: Any) -> Any:
    """An Arrow scalar as plain data; lists of numbers as arrays, which is quicker."""
    pyarrow: Any = import_module("pyarrow")
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: _cell(scalar[name]) for name in scalar}
    if isinstance(scalar, (pyarrow.ListScalar, pyarrow.LargeListScalar)) and scalar.is_valid:
        values = scalar.values
        if pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type):
            return values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


@dataclass(frozen=True)
class RowSource:
    """The sound in row `index` of a dataset.

    It is kept as Hugging Face datasets do: bytes of a file; a path; samples; or a mapping with
    `bytes`, `path`, or `array` and `sampling_rate`.

    name: what errors call it
    array_rate: sample rate of samples that name none, in Hz
    """

    rows: DatasetRows
    index: int
    name: str
    array_rate: float | None

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples in [-1, 1], (samples,). Raises `AudioError`."""
        try:
            content = self.rows.audio(self.index)
        except Exception as error:  # a damaged file, or no network: each library has its own
            raise AudioError(self.name, f"cannot be read ({short(error)})") from error
        part: dict[str, Any] = {"start": start, "duration": duration, "sample_rate": sample_rate}
        rate, suffix = self.array_rate, ""
        if isinstance(content, Mapping):
            rate = content.get("sampling_rate") or rate
            suffix = Path(content.get("path") or "").suffix
            values = (content.get(key) for key in ("bytes", "array", "path"))
            content = next((value for value in values if value is not None), None)
        if content is None:
            raise AudioError(self.name, "there is no sound in the data", kind="EmptyAudio")
        if isinstance(content, (str, os.PathLike)):
            folder = self.rows.folder
            path = Path(content) if folder is None else folder / content
            return read_clip(as_on_disk(path), **part)
        part["name"] = self.name
        try:
            if isinstance(content, (bytes, bytearray, memoryview)):
                with _as_file(bytes(content), suffix) as path:
                    return read_clip(path, **part)
            return read_clip(np.asarray(content), input_sample_rate=rate, **part)
        except AudioError as error:
            raise AudioError(self.name, error.reason, error.advice, error.kind) from error
        except UsageError as error:
            reason = f"the sound in the data cannot be used ({error})"
            raise AudioError(self.name, reason, kind="NotAudio") from error


@contextmanager
def _as_file(data: bytes, suffix: str) -> Iterator[Path]:
    """A file with these bytes, because that is how everything else is decoded and checked."""
    handle, name = tempfile.mkstemp(suffix=suffix, prefix="naturelm-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def open_rows(path: str) -> DatasetRows | None:
    """The dataset that a path names; None for a table of text or a folder of recordings.

    Of several splits it is the one called `test`. Raises DataError.
    """
    place = as_on_disk(Path(path))
    if place.is_dir():
        if _is_saved(place):
            return _saved_dataset(place)
        if found := [str(file) for file in sorted(place.rglob("*.parquet"))]:
            files, notes = _test_files(found, path, str(place))
            return ParquetRows(files, path, place, notes=notes)
        if found := [str(file) for file in sorted(place.rglob("*.arrow"))]:
            files, notes = _test_files(found, path, str(place))
            return _arrow_files([Path(file) for file in files], path, place, notes)
        return None
    suffix = place.suffix.lower()
    if place.is_file() and suffix == ".arrow":
        return _arrow_files([place], path, place.parent)
    if place.is_file() and suffix == ".parquet":
        return ParquetRows([str(place)], path, place.parent)
    if _is_hub_id(path):
        try:
            files_there, filesystem = hub_files(path)
        except DataError as error:
            raise DataError(f"{path}: is no file or folder here, and {error}") from error
        files, notes = _test_files(files_there, path, f"datasets/{path}")
        return ParquetRows(files, path, None, filesystem, notes)
    return None


_SPLITS = {"test": "test", "train": "train", "valid": "validation", "val": "validation"} | {
    "training": "train", "validation": "validation", "dev": "validation", "testing": "test"
}  # fmt: skip


def _test_files(files: list[str], name: str, root: str) -> tuple[list[str], tuple[str, ...]]:
    """Of files with splits in their names those of `test`, and what to say of that.

    root: what comes before it in their paths names no split

    Raises DataError where there are several splits and none of them is `test`.
    """
    splits = [split_of(file.partition(root)[2] or file) for file in files]
    there = list(dict.fromkeys(split for split in splits if split))
    if not there or len({*splits}) == 1:
        return files, ()
    if "test" not in there:
        if len(there) == 1:
            return files, ()
        raise DataError(
            f"{name}: has files of the splits {', '.join(there)} and none of test: name one of "
            "the files, or a folder with those of one split"
        )
    tests = [file for file, split in zip(files, splits, strict=True) if split == "test"]
    return tests, (
        f"{name}: of its {len(files)} files the {len(tests)} of the split test "
        f"{'is' if len(tests) == 1 else 'are'} read",
    )


def split_of(path: str) -> str:
    """The split that a file's name says, or a folder's that it is in."""
    for part in reversed(path.lower().replace("\\", "/").split("/")):
        for word in re.findall(r"[a-z]+", part):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _is_saved(place: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return any((place / file).is_file() for file in _SAVED)


def _refuse_places_elsewhere(folder: Path) -> None:
    """Raise DataError where files of a dataset say that its data lie outside of its folder.

    The library would read any file of this machine, and fetch any address.
    """
    said: list[tuple[Path, Any]] = []
    for file in (*folder.glob("state.json"), *folder.glob("*/state.json")):
        said += [(file, one) for one in parse_json(file.read_text("utf-8"))["_data_files"]]
    if (file := folder / "dataset_dict.json").is_file():
        said.append((file, parse_json(file.read_text("utf-8"))["splits"]))
    if (file := folder / "README.md").is_file():
        block = import_module("huggingface_hub.repocard").REGEX_YAML_BLOCK
        head = block.search(file.read_text("utf-8"))
        said.append((file, _configs(file, head[2] if head else "")))
    if (file := folder / ".huggingface.yaml").is_file():
        said.append((file, _configs(file, file.read_text("utf-8"))))
    for file, value in said:
        for place in _places(value, named=file.suffix == ".json"):
            parts = re.split(r"[/\\]", place)
            if "://" in place or "::" in place or place.startswith("~") or {"", ".."} & {*parts}:
                raise DataError(
                    f"{file}: names data at {place!r}, and all data of a dataset on disk must lie "
                    "in its folder"
                )


def _configs(file: Path, text: str) -> Any:
    """What the card of a dataset says of its data; no aliases, which the library would expand."""
    yaml = import_module("yaml")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise DataError(f"{file}: its YAML has aliases (*), which the card of a dataset must not")
    loaded = yaml.safe_load(text)
    return loaded.get("configs") if isinstance(loaded, dict) else None


def _places(value: Any, *, named: bool = False) -> Iterator[str]:
    """The texts in a value that name files, which `named` says of all of it."""
    if isinstance(value, str):
        yield from [value.removesuffix("/")] if named else []
    elif isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in pairs:
            yield from _places(one, named=named or key in ("data_files", "data_dir"))


def _saved_dataset(folder: Path) -> ArrowRows:
    datasets = library("datasets", f"{folder}: reading it {_NEEDED}", DataError)
    with _as_data_error(f"{folder}: {_UNFINISHED}"):
        _refuse_places_elsewhere(folder)
        found = datasets.load_from_disk(str(folder))
    notes: tuple[str, ...] = ()
    if isinstance(found, dict):
        if len(found) > 1 and "test" not in found:
            raise DataError(
                f"{folder}: has the splits {', '.join(found)} and none called test: name the "
                "folder of one of them"
            )
        if len(found) > 1:
            notes = (f"{folder}: of its splits {', '.join(found)} only test is read",)
        found = found["test"] if "test" in found else next(iter(found.values()))
    return ArrowRows(found, str(folder), folder, notes=notes)


def _arrow_files(
    files: Sequence[Path], name: str, folder: Path, notes: tuple[str, ...] = ()
) -> ArrowRows:
    datasets = library("datasets", f"{name}: reading it {_NEEDED}", DataError)
    parts = []
    for file in files:
        with _as_data_error(f"{file}: {_UNFINISHED}"):
            parts.append(datasets.Dataset.from_file(str(file)))
    return ArrowRows(datasets.concatenate_datasets(parts), name, folder, notes=notes)


def _is_hub_id(path: str) -> bool:
    name = path.partition("@")[0]
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists() and not Path(name).suffix


def hub_files(name: str) -> tuple[list[str], Any]:
    """The Parquet files of a dataset on the Hub, in order, and the file system they are in.

    Raises DataError, whose message says nothing of where else the dataset may be.
    """
    from huggingface_hub import HfFileSystem

    with _as_data_error("as a dataset of the Hugging Face Hub it cannot be reached"):
        filesystem = HfFileSystem()
        files = sorted(filesystem.glob(f"datasets/{name}/**/*.parquet"))
    if not files:
        raise DataError(
            "on the Hugging Face Hub no dataset of this name with Parquet files was found"
        )
    return files, filesystem


def hub_commit(name: str, revision: str | None) -> str:
    """The commit of a dataset on the Hub that a revision, or the newest one, is. Raises DataError.

    The message says nothing of where else the dataset may be.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        with _as_data_error("as a dataset of the Hugging Face Hub it cannot be reached"):
            return str(HfApi().dataset_info(name, revision=revision).sha)
    except DataError as error:
        if isinstance(error.__cause__, RevisionNotFoundError):
            raise DataError(f"on the Hugging Face Hub it has no revision {revision!r}") from None
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise DataError("on the Hugging Face Hub no dataset of this name was found") from None
        raise


def parquet_file(file: str, filesystem: Any) -> Any:
    """An open Parquet file, of which the end was read. Raises DataError."""
    parquet = library("pyarrow.parquet", f"{file}: reading it {_NEEDED}", DataError)
    with _as_data_error(f"{file}: {_UNFINISHED}"):
        return parquet.ParquetFile(file, filesystem=filesystem)


def open_split(config: TableConfig, columns: Columns) -> ArrowRows | None:
    """The split of a dataset that a source names; None where it is no dataset with sound.

    Rows are drawn in any order, so Parquet files and datasets on the Hub are kept as Arrow files on
    the disk. Class labels come as names, and the column with sound may be any.

    Raises DataError with what is missing: the library, the dataset, the split, the column.
    """
    place = Path(config.path)
    found = _load_any(config, place)
    if found is None:
        for key in ("split", "subset"):
            if getattr(config, key) is not None:
                raise DataError(f"{place}: {key} is for Hugging Face datasets, and this is none")
        return None
    split = _split(found, config)
    audio = _audio_column(split, config, columns)
    light = _wanted(split.column_names, audio, None)
    for column in config.where:
        if column not in light:
            raise DataError(
                f"{config.path}: `where` asks for column {column!r}; there are {', '.join(light)}"
            )
    return ArrowRows(
        split,
        config.path + (f" [{config.split}]" if config.split else ""),
        Path(config.audio_root or place) if place.is_dir() else None,
        audio=audio,
    )


def _load_any(config: TableConfig, place: Path) -> Any:
    """What the library makes of a source: a dataset or its splits; None where it is neither."""
    saved = _is_saved(place)
    arrow = sorted(place.glob("*.arrow")) if place.is_dir() else []
    if place.suffix == ".arrow" and place.is_file():
        arrow = [place]
    parquet = place.is_dir() and any((*place.glob("*.parquet"), *place.glob("*/*.parquet")))
    hub = _is_hub_id(config.path)
    if not (saved or arrow or parquet or hub or _holds_sound(place)):
        return None
    datasets = library(
        "datasets",
        f"{config.path}: reading Hugging Face datasets needs the package datasets: "
        "pip install 'naturelm-audio[beans]'",
        DataError,
    )
    if place.exists():
        failed = f"{place}: cannot be read as a Hugging Face dataset"
    else:
        failed = (
            f"{config.path}: there is no such table or folder, and as a dataset on the Hugging "
            "Face Hub it cannot be opened"
        )
    with _as_data_error(failed):
        if saved:
            _refuse_places_elsewhere(place)
            return datasets.load_from_disk(str(place))
        if arrow:
            return datasets.concatenate_datasets(
                [datasets.Dataset.from_file(str(f)) for f in arrow]
            )
        if place.is_file():
            return datasets.load_dataset("parquet", data_files=str(place))
        if not hub:
            _refuse_places_elsewhere(place)
        name, _, revision = config.path.partition("@") if hub else (config.path, "", "")
        part = {"name": config.subset, "split": config.split, "revision": revision or None}
        return datasets.load_dataset(name, **part)


def _split(found: Any, config: TableConfig) -> Any:
    """The split that is asked for, or the only one."""
    if not isinstance(found, Mapping):
        return found
    if config.split is None and len(found) == 1:
        return next(iter(found.values()))
    if config.split not in found:
        said = "no split is named" if config.split is None else f"there is no {config.split!r}"
        raise DataError(f"{config.path}: {said}; set `split` to one of {', '.join(found)}")
    return found[config.split]


def _audio_column(dataset: Any, config: TableConfig, columns: Columns) -> str:
    """The column named in the configuration, or the only one with sound, or else `audio`."""
    there = dataset.column_names
    (named, *_) = columns.names[AUDIO]
    if AUDIO in config.columns and named not in there:
        raise DataError(f"{config.path}: columns.audio is {named!r}; there are {', '.join(there)}")
    if named in there:
        return named
    sounds = [name for name in there if type(dataset.features[name]).__name__ == "Audio"]
    if len(sounds) > 1:
        raise DataError(
            f"{config.path}: several columns hold sound ({', '.join(sounds)}); choose "
            "with `columns: {audio: <column>}`"
        )
    return sounds[0] if sounds else AUDIO


def _holds_sound(place: Path) -> bool:
    """Whether a Parquet file has sound in it, which must not be read as a whole."""
    if place.suffix.lower() != ".parquet" or not place.is_file():
        return False
    try:
        parquet: Any = import_module("pyarrow.parquet")
        schema = parquet.read_schema(place)
    except Exception:  # whatever it is, it is said where the table is read
        return False
    types = (str(column.type) for column in schema)
    return any(kind.startswith("struct<") and "bytes: binary" in kind for kind in types)


@contextmanager
def _as_data_error(message: str) -> Iterator[None]:
    """What another library raises becomes a DataError with this message and the library's."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{message} ({short(error)})") from error


def short(error: BaseException) -> str:
    """The first line of what other libraries say."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
