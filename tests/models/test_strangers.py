"""Files of strangers: each is refused in one sentence, within a second and 200 MB, or it works."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from NatureLM.errors import NatureLMError
from NatureLM.generation.engine import Engine
from NatureLM.generation.engine import Request as Prompt
from NatureLM.generation.labels import continued_tokens
from NatureLM.inference.calibration import Calibration, read_calibration, write_calibration
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.export import convert_checkpoint
from NatureLM.models.checkpoint.peft_io import open_adapter
from NatureLM.models.checkpoint.tensors import state_of, write_tensors
from NatureLM.prompts import token_ids
from NatureLM.search.index import IndexSettings, open_index
from NatureLM.training.outputs import Checkpoint
from tests.builders import edit_json

SECONDS, MEGABYTES = 1.0, 200
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = "[" * 100_000 + "]" * 100_000
LINEARS = {f"model.layers.{n}.self_attn.{p}_proj": (64, 64) for n in (0, 1) for p in "qkvo"}


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the block takes more of a processor, or of memory, than a refusal may."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    has_peak = os.access(reset, os.W_OK)

    def peak() -> float:
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3

    if has_peak:
        reset.write_text("5")  # the highest so far is forgotten
    gc.disable()  # else what tests before left is looked through meanwhile, for a second or more
    before, began = peak() if has_peak else 0.0, time.process_time()
    try:
        yield
    finally:
        gc.enable()
    took = time.process_time() - began
    assert took < SECONDS
    assert not has_peak or peak() - before < MEGABYTES


def refusal(call: Callable[[], object]) -> str:
    """What is said against a file, in bounds."""
    with bounded(), pytest.raises(NatureLMError) as caught:
        call()
    return str(caught.value)


def put(name: str, text: str | bytes) -> Callable[[Path], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data)


def change(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def header(values: Any, length: int | None = None) -> Callable[[Path], object]:
    """A safetensors file with this header, and 8 bytes of tensors."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    return put(WEIGHTS, start + text + bytes(8))


def shards(weight_map: Any) -> Callable[[Path], object]:
    return put(INDEX, json.dumps({"weight_map": weight_map}))


@pytest.fixture(scope="module")
def model_folder(build_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("strangers") / "model"
    build_model().save_pretrained(folder)
    NatureLM.from_pretrained(folder)  # what is imported late is not the file's
    return folder


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def _without(*parts: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        kept = {
            name: tensor
            for name, tensor in load_file(folder / WEIGHTS).items()
            if not any(part in name for part in parts)
        }
        save_file(kept, folder / WEIGHTS)

    return damage


def _both(*damages: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [damage(folder) for damage in damages]


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SHARD = "weight_map must give each tensor the name of a .safetensors file in the same folder, got "
NAMES = "must be an object with a number for each of at most 1,000 names of layers, got "
CONFIGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "640 GB windows": (
        change(window_seconds=1e7),
        "window_seconds must be a number from 0.001 to 3,600, got 10000000.0",
    ),
    "windows without end": (change(window_seconds=float("inf")), "to 3,600, got inf"),
    "a window of an hour": (
        change(window_seconds=3600),
        "no more than 16,384 patches of the spectrogram (of ",
    ),
    "a word for a window": (change(window_seconds="ten"), "to 3,600, got 'ten'"),
    "a million passes": (
        change(window_delays=[0.0] * 10**5),
        "window_delays must be a list of at most 64 numbers, got [0.0, 0.0,",
    ),
    "NaN": (change(second_stride=float("nan")), "second_stride must be a number from 0.0001 to"),
    "a rate": (change(sample_rate=10**12), "must be a whole number from 1,000 to 1,000,000, got"),
    "half a query": (change(num_audio_query_token=1.5), "a whole number from 1 to 4,096, got 1.5"),
    "yes for true": (change(lora="yes"), "lora must be true or false, got 'yes'"),
    "an encoder": (change(encoder="evil"), "encoder must be one of beats, got 'evil'"),
    "a list for an object": (change(beats_cfg=[1]), "beats_cfg must be an object or null, got [1]"),
    "100,000 layers of the encoder": (
        change(beats_cfg__encoder_layers=100_000),
        "beats_cfg.encoder_layers = 100000: Input should be less than or equal to 1000",
    ),
    "frames without end": (change(fbank_cfg__frame_shift_ms=1e-9), "a sample or more apart"),
    "classes that no file holds": (
        _both(change(beats_cfg__predictor_class=10**9), _without("predictor")),
        "beats_cfg.predictor_class = 1000000000: Input should be less than or equal to 10000",
    ),
    "100,000 layers": (
        change(text_config__num_hidden_layers=100_000),
        "num_hidden_layers must be a whole number from 1 to 1,000, got 100000",
    ),
    "1,000 layers and the tensors of two": (
        change(text_config__num_hidden_layers=1000),
        "config.json describes more than 3,",
    ),
    "100,000 layers by another name": (
        change(text_config={"model_type": "gpt2", "n_layer": 100_000}),
        "num_hidden_layers must be a whole number from 1 to 1,000, got 100000",
    ),
    "a width": (change(text_config__hidden_size=10**30), "and no size is so large"),
    "a vocabulary": (change(text_config__vocab_size=10**12), "needed (1000000000000, 48)"),
    "no heads": (change(text_config__num_attention_heads=0), "ZeroDivisionError: "),
    "words for numbers": (change(text_config__hidden_size="64"), "expected int, got str"),
    "another rope": (change(text_config__rope_parameters={"rope_type": "evil"}), "KeyError"),
    "an activation": (change(text_config__hidden_act="evil"), "KeyError: 'evil'"),
    "a dtype": (change(text_config__dtype="evil"), "has no attribute 'evil'"),
    "a kind of model": (
        change(model_type="evil"),
        "config.json describes a model of type 'evil', not a NatureLM checkpoint",
    ),
    "a kind of language model": (
        change(text_config__model_type="evil"),
        "text_config: model_type is 'evil', and no causal language model of transformers has this",
    ),
    "pictures": (change(text_config__model_type="vit"), "model_type is 'vit', and no causal"),
    "a list of kinds": (change(text_config__model_type=["llama"]), "model_type is ['llama'], and"),
    "layers by number": (change(text_config__per_layer_config={"7": {}}), "integer layer indices"),
    "no pattern": (change(lora_rank_pattern={"(((": 3}), f"lora_rank_pattern {NAMES}{{'(((': 3}}"),
    "a pattern without end": (change(lora_alpha_pattern={"(a+)+!": 3}), f"{NAMES}{{'(a+)+!': 3}}"),
    "a word for an alpha": (
        change(lora_alpha_pattern={"q_proj": "x"}),
        f"{NAMES}{{'q_proj': 'x'}}",
    ),
    "numbers for layers": (
        change(lora_target_modules=[1]),
        "names of layers, got [1]",
    ),
    "a rank": (change(lora_rank=10**12), "lora_rank must be a whole number from 1 to 65,536, got"),
    "a dropout": (change(lora_dropout=7), "lora_dropout must be a number from 0 to 1, got 7"),
    "a long template": (
        change(prompt_template="{}" * 10**5),
        "prompt_template must be a string of at most 100,000 characters, got '{}{}",
    ),
    "a base that is no path": (change(llama_path=["x"]), "llama_path is ['x'], and it must be a"),
    "a deep configuration": (
        put("config.json", DEEP),
        "config.json cannot be read as JSON: its",
    ),
    "a list": (put("config.json", "[1, 2]"), "it holds [1, 2], and an object is needed"),
    "a long configuration": (put("config.json", b" " * (9 << 20)), "more than the 8 MiB that are"),
    "a digit for each minute": (
        put("config.json", '{"x":' + "1" * 9999 + "}"),
        "Exceeds the",
    ),
    "no text": (
        put("config.json", b"\xff\xfe"),
        "cannot be read as JSON: 'utf-8' codec",
    ),
    "generation, a list": (put("generation_config.json", "[]"), "it holds [], and an object is"),
    "generation, deep": (put("generation_config.json", DEEP), "its values are nested too deep"),
    "generation, an end": (
        put("generation_config.json", '{"eos_token_id": "x"}'),
        "eos_token_id is 'x', and it must be a token's number or a list",
    ),
    "a tokenizer, cut": (put("tokenizer.json", "{"), "holds no usable tokenizer: JSONDecodeError"),
    "a tokenizer, empty": (put("tokenizer.json", "{}"), "holds no usable tokenizer: KeyError"),
    "a tokenizer, deep": (put("tokenizer.json", DEEP), "tokenizer: RecursionError"),
    "a tokenizer, long": (
        put("tokenizer.json", b" " * 41_000_000),
        "tokenizer.json has 41 MB, and at most 40 MB are read",
    ),
    "a tokenizer's settings": (put("tokenizer_config.json", "[]"), "holds no usable tokenizer: "),
    "tensors, nothing": (put(WEIGHTS, b""), "cannot be read as safetensors (Error while deserial"),
    "tensors, a long header": (
        header({}, 2**63),
        "would have 9,223,372,036,854,775,808 bytes",
    ),
    "tensors, many": (
        header({f"x{n}": {**ONE, "shape": [0], "data_offsets": [0, 0]} for n in range(99_999)}),
        "bytes, and 4 MiB are read",
    ),
    "tensors, a deep header": (header(b'{"a":' + DEEP.encode() + b"}"), "recursion limit exceeded"),
    "tensors that overlap": (header({"a": ONE, "b": ONE}), "invalid offset for tensor"),
    "tensors beyond memory": (header({"a": {**ONE, "shape": [2**62] * 2}}), "overflow computing"),
    "tensors of less than nothing": (
        header({"a": {**ONE, "shape": [-1]}}),
        "invalid value",
    ),
    "tensors of NaN": (header(b'{"a":{"dtype":"F32","shape":[NaN]}}'), "expected value at line 1"),
    "tensors of another kind": (header({"a": {**ONE, "dtype": "EVIL"}}), "unknown variant `EVIL`"),
    "shards, cut": (put(INDEX, "{"), "index.json cannot be read as JSON: Expecting property name"),
    "shards, deep": (put(INDEX, DEEP), "its values are nested too deep"),
    "shards, none": (shards({}), f"{SHARD}{{}}"),
    "shards, a list": (shards(["a"]), f"{SHARD}['a']"),
    "shards, a number": (shards({"a": 3}), f"{SHARD}3"),
    "shards above": (
        shards({"a": "../model/model.safetensors"}),
        f"{SHARD}'../model/model.saf",
    ),
    "shards below": (shards({"a": "x/model.safetensors"}), f"{SHARD}'x/model.safetensors'"),
    "shards elsewhere": (shards({"a": "/tmp/a.safetensors"}), f"{SHARD}'/tmp/a.safetensors'"),
    "shards on a disk": (shards({"a": "C:\\a.safetensors"}), f"{SHARD}'C:\\\\a.safetensors'"),
    "shards by name of a pickle": (shards({"a": "a.bin"}), f"{SHARD}'a.bin'"),
    "shards with an end": (shards({"a": "a\0.safetensors"}), f"{SHARD}'a\\x00.safetensors'"),
    "shards, long": (shards({"a": "a" * 300 + ".safetensors"}), f"{SHARD}'aaaa"),
    "shards, ten that are not there": (
        shards({str(n): f"{n}.safetensors" for n in range(10)}),
        "7.safetensors and 2 more; copy or download them into the same folder",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_models_are_refused_in_one_sentence(case: str, folder: Path) -> None:
    damage, says = CONFIGS[case]
    damage(folder)
    message = refusal(lambda: NatureLM.from_pretrained(folder))
    assert says in message
    assert len(message) < 3000
    assert "\n" not in message.partition("nothing was loaded.\n")[0]


def test_what_only_classifiers_use_is_left_out(folder: Path) -> None:
    """A hundred million names of classes were made before."""
    edit_json(
        folder / "config.json",
        num_labels=10**8,
        text_config__num_labels=10**8,
        text_config__id2label="x",
    )
    with bounded():
        NatureLM.from_pretrained(folder)


def test_tables_that_no_file_holds_are_bounded(folder: Path) -> None:
    """A mask of GPT-Neo has the square of its positions, which took 400 MB for a file of 500 kB."""
    text = {"model_type": "gpt_neo", "max_position_embeddings": 20_000, "hidden_size": 4}
    text |= {"num_layers": 1, "num_heads": 1, "attention_types": [[["global"], 1]]}
    edit_json(folder / "config.json", text_config={**text, "vocab_size": 606}, lora=False)
    config = NatureLM.config_class.from_pretrained(folder)
    with torch.device("meta"):
        refs = state_of(NatureLM(config))
    write_tensors({n: torch.zeros(t.shape, dtype=t.dtype) for n, t in refs.items()}, folder)
    assert refusal(lambda: NatureLM.from_pretrained(folder)) == (
        "config.json describes tables of 400 MB that no file holds; the number of positions of the "
        "language model must be smaller"
    )


def test_links_lead_to_the_folder_or_to_the_cache_of_hugging_face(
    model_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    shutil.copytree(model_folder, snapshot)
    for depth in (blobs, tmp_path / "blobs" / "ab"):  # of the repository; of all of them
        depth.mkdir(parents=True)
        (snapshot / WEIGHTS).resolve().rename(depth / "0123")
        (snapshot / WEIGHTS).unlink(missing_ok=True)
        (snapshot / WEIGHTS).symlink_to(os.path.relpath(depth / "0123", snapshot))
        NatureLM.from_pretrained(snapshot)
    (tmp_path / "link").symlink_to(model_folder)
    NatureLM.from_pretrained(tmp_path / "link")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(model_folder / WEIGHTS)
    assert refusal(lambda: NatureLM.from_pretrained(snapshot)) == (
        f"{snapshot / WEIGHTS} is a link out of its folder, to {model_folder / WEIGHTS}; copy the "
        "file into the folder, or link the folder as a whole"
    )


# -- adapters -------------------------------------------------------------------------------

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": torch.zeros(shape)
        for name in LINEARS
        if "q_proj" in name
        for part, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_modules": "((("}, "'(((' in adapter_config.json is no pattern of names that can"),
        ({"target_modules": "(" * 1500}, "is no pattern of names that can be read"),
        ({"target_modules": "a" * 3000}, "it has more than 2,000 characters"),
        ({"target_modules": r"(q)\1_proj"}, "has what is not understood here (groupref)"),
        ({"target_modules": "(?i).*Q_PROJ"}, "it has flags, such as (?i)"),
        ({"target_modules": [1]}, "target_modules is [1], and it must be a name or a list"),
        ({"target_modules": ["q_proj"] * 10_001}, "or a list of at most 10,000"),
        ({"target_modules": r"([a-z._0-9]+)+!"}, "PEFT leaves"),
        ({"target_modules": "(.*)*" * 300 + "!"}, "PEFT leaves"),
        ({"target_modules": "(?:a?|.)" * 240 + "!"}, "PEFT leaves"),
        ({"target_modules": "(?:(?:.{1000}){1000}){1000}"}, "PEFT leaves"),
        ({"exclude_modules": "(((.*)*)*)*"}, "PEFT leaves"),
        ({"rank_pattern": {"((": 2}}, "'((' in adapter_config.json is no pattern"),
        ({"rank_pattern": {f"{'(x+x+)+' * 20}{n}": 2 for n in range(9000)}}, "take too long"),
        ({"alpha_pattern": {"q_proj": 1e300}}, "alpha_pattern.q_proj is 1e+300, and it must be a"),
        ({"alpha_pattern": dict.fromkeys(map(str, range(10_001)), 1)}, "at most 10,000 names"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform is ['1'], and it must be a number"),
        (
            {"layers_to_transform": [0, 1], "layers_pattern": "(.*)*x"},
            "layers_pattern is '(.*)*x', and it must be plain names of layers",
        ),
        (
            {"lora_dropout": float("nan")},
            "lora_dropout is nan, and it must be a number",
        ),
        ({"r": 10**400}, "and it must be a whole number above 0 and no more than 1e9"),
    ],
)
def test_patterns_of_adapters_end(changes: dict[str, Any], says: str, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", **changes)
    assert says in refusal(lambda: open_adapter(adapter, LINEARS))


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k|v|o)_proj",
        r"model\.layers\.\d+\.self_attn\.q_proj",
        r"model\.layers\.[0-1]\.[^.]*\.[qk]_proj$",
        r"(?:.*?(?:language|text|layers).*?(?:self_attn|attention).*?(?:\bq_proj\b|mlp).*?)",
        r"^(?!.*mlp).*q_proj",
        r"(?:model\.layers\.\w{1,3}\.){1,2}self_attn\.q_proj\Z",
        r"[^\d]+[\d]\S+",
    ],
)
def test_patterns_mean_what_they_mean_to_peft(pattern: str, adapter: Path) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    edit_json(adapter / "adapter_config.json", target_modules=pattern, rank_pattern={pattern: 2})
    assert len(open_adapter(adapter, LINEARS).layers) == 2
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj"], exclude_modules=pattern)
    config = LoraConfig(target_modules=pattern)
    assert check_target_module_exists(config, "model.layers.1.self_attn.q_proj")
    assert "PEFT leaves" in refusal(lambda: open_adapter(adapter, LINEARS))


def test_tensors_of_adapters_have_names_of_layers(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    name = "x" + ".lora_A" * 60_000 + "!"
    save_file({name: torch.zeros(1)}, path)
    assert "tensors that are no plain LoRA: x.lora_A" in refusal(
        lambda: open_adapter(adapter, LINEARS)
    )
    save_file({f"{n}.lora_A.weight": torch.zeros(0) for n in range(20_000)}, path)
    assert "is for 20000 layers, and the language model has 8" in refusal(
        lambda: open_adapter(adapter, LINEARS)
    )


# -- indexes, pickles, states ---------------------------------------------------------------


def npz(folder: Path, **changes: Any) -> Path:
    """An index of three rows, with some arrays in place of its own; bytes stay as they are."""
    path = folder / "index.npz"
    arrays: dict[str, Any] = {
        "vectors": np.ones((3, 4), np.float32),
        "file": np.zeros(3, np.int32),
        "start": np.arange(3.0),
        "end": np.arange(3.0) + 1,
        "files": np.array(["a.wav"]),
        "model": np.array("m"),
        "settings": np.array(IndexSettings("m", "f", "encoder", 4, 16000, 1.0, 1.0).to_json()),
        **changes,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = array
            if not isinstance(array, bytes):
                made = io.BytesIO()
                np.save(made, array, allow_pickle=True)
                data = made.getvalue()
            archive.writestr(f"{name}.npy", data)
    return path


def npy(**values: Any) -> bytes:
    text = repr({"descr": "<f4", "fortran_order": False, "shape": (3, 4), **values}) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(48)


def _settings_of(**changes: Any) -> Any:
    values = {**json.loads(IndexSettings("m", "f", "e", 4, 16000, 1.0, 1.0).to_json()), **changes}
    return np.array(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vectors": np.ones((3, 5), np.float32)}, "its arrays do not fit together"),
        ({"vectors": np.ones((4, 4), np.float32)}, "its arrays do not fit together"),
        ({"vectors": np.ones(12, np.float32)}, "its array vectors is of shape (12,)"),
        ({"vectors": np.ones((3, 4))}, "its array vectors is of type float64"),
        ({"vectors": np.array([{}] * 3)}, "vectors.npy cannot be mapped"),
        ({"vectors": npy(shape=(10**12, 4))}, "is cut off"),
        ({"vectors": npy(shape=(-1, 4))}, "vectors.npy cannot be mapped"),
        ({"vectors": npy(shape=("x", 4))}, "cannot be read as .npz: shape is not valid"),
        ({"vectors": npy(descr="<evil")}, "cannot be read as .npz: descr is not a valid dtype"),
        ({"vectors": npy(descr="<U2000000000")}, "descr is not a valid dtype descriptor"),
        ({"vectors": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}, "cannot be read as .npz: "),
        ({"vectors": b""}, "cannot be read as .npz: "),
        ({"file": np.full(3, 9, np.int32)}, "its rows are of recordings that it does not name"),
        ({"file": np.full(3, -1, np.int32)}, "its rows are of recordings that it does not name"),
        ({"file": np.zeros(3)}, "its array file is of type float64"),
        ({"start": np.full(3, np.nan)}, "it has rows that do not start before they end"),
        ({"end": np.full(3, np.inf)}, "it has rows that do not start before they end"),
        ({"files": np.array([{}])}, "files.npy cannot be mapped"),
        ({"settings": np.array(DEEP)}, "its settings cannot be read"),
        ({"settings": _settings_of(width=0)}, "its settings cannot be read"),
        ({"settings": _settings_of(sample_rate=10**12)}, "its settings cannot be read"),
        ({"settings": _settings_of(window_seconds="1")}, "its settings cannot be read"),
        ({"settings": _settings_of(heard=[["a"]])}, "its settings cannot be read"),
        ({"settings": _settings_of(schema_version="2")}, "its settings cannot be read"),
        ({f"x{n}": b"" for n in range(6)}, "has 13 arrays, more than an index has"),
    ],
)
def test_indexes_of_wrong_shapes(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert len(list(open_index(npz(tmp_path)).blocks())) == 1
    path = npz(tmp_path, **changes)
    message = refusal(lambda: list(open_index(path).blocks()))
    assert message.startswith(f"{path}: ")
    assert says in message


def pickled(path: Path, value: Any, **how: Any) -> Path:
    torch.save(value, path, **how)
    return path


def _compressed(path: Path) -> Path:
    """A pickle of a gigabyte of nothing in a megabyte."""
    pickled(path, {"model": {"a": torch.zeros(2)}})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + bytes(10**8 if name.endswith(".pkl") else 0))
    return path


def _edited(path: Path, before: bytes, after: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(before, after))
    return path


MANY = torch.zeros(10_000)
MANY_FLOATS = b"cpuq\x08J\xff\xff\xff\x7f"
VAST = torch.zeros(1).expand(10**6, 10**6)
OLD = {"_use_new_zipfile_serialization": False}
WIDE = {"model": {"a": torch.arange(7.0)}}
PICKLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "10^12 elements": (
        lambda path: pickled(path, {"model": {"a": VAST}}),
        "tensor 'a' is of shape (1000000, 1000000), which is more than the file holds",
    ),
    "10^12 elements, as of old": (
        lambda path: pickled(path, {"a": VAST}, **OLD),
        "tensor 'a' is of shape (1000000, 1000000), which is more than the file holds",
    ),
    "a storage of 2^31 - 1": (
        lambda path: _edited(
            pickled(path, WIDE, **OLD), b"cpuq\x08K\x07", b"cpuq\x08J" + b"\xff" * 3 + b"\x7f"
        ),
        "cannot be read as tensors and plain containers",
    ),
    "one storage a thousand times": (
        lambda path: pickled(path, {f"a{n}": MANY[n:] for n in range(1000)}),
        "its tensors would take 3",
    ),
    "sparse": (
        lambda path: pickled(path, {"model": {"a": torch.eye(3).to_sparse()}}),
        "tensor 'a' has no plain numbers",
    ),
    "no numbers": (
        lambda path: pickled(path, {"model": {"a": torch.empty(10**9, device="meta")}}),
        "has no plain numbers",
    ),
    "compressed": (_compressed, "is compressed, as PyTorch has none"),
    "a number": (lambda path: pickled(path, 3), "holds no mapping of tensors"),
    "a long pickle": (
        lambda path: pickled(path, {"model": {}, "x": "x" * (17 << 20)}),
        "beside the tensors, and at most 16.8 MB are read",
    ),
    "nothing": (lambda path: (path.write_bytes(b"") and path) or path, "cannot be read as tensors"),
    "a stop too many": (
        lambda path: (path.write_bytes(b"\x80\x02...") and path) or path,
        "cannot be read as tensors and plain containers",
    ),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_that_say_more_than_they_hold(case: str, tmp_path: Path) -> None:
    make, says = PICKLES[case]
    path, out = make(tmp_path / "a.pth"), tmp_path / "out"
    assert says in refusal(lambda: convert_checkpoint(path, out, allow_pickle=True))
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', and it must be a number above 0"),
        ({"temperature": 10**400}, "and it must be a number above 0"),
        ({"merging_alpha": float("nan")}, "merging_alpha is nan, and it must be a number"),
        ({"normalize": []}, "normalize is [], and it must be a name"),
        ({"labels": 1.5}, "labels is 1.5, and it must be a whole number"),
        ({"query": None}, "query is None, and it must be a question"),
    ],
)
def test_calibrations_of_other_types(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(CALIBRATION, path)
    edit_json(path, **change)
    assert says in refusal(lambda: read_calibration(path))
    path.write_text(DEEP)
    assert "is no JSON (its values are nested too deep)" in refusal(lambda: read_calibration(path))


CALIBRATION = Calibration(1.5, "mean", 1.0, None, "What is it?", 3, 30, 30)
STATE = {"run": {}, "best": [0.5, 3], "scores": {}, "bad_files": {}}


def test_states_of_training_that_are_none(tmp_path: Path) -> None:
    checkpoint = Checkpoint(3, tmp_path)
    for text, says in (
        (DEEP, "is no state of a run (ValueError: its values are nested too deep); remove this"),
        (json.dumps({**STATE, "best": [1]}), "is no state of a run (ValueError: best is [1]); rem"),
        (json.dumps({**STATE, "run": []}), "is no state of a run (ValueError: run is []); remove"),
        ("{}", "is no state of a run (KeyError: 'run'); remove this checkpoint, and --resume goes"),
    ):
        (tmp_path / "state.json").write_text(text)
        assert says in refusal(checkpoint.state)
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 99)
    assert "and --resume goes on from the one before it" in refusal(
        lambda: checkpoint.tensors("weights.safetensors")
    )


def test_a_tokenizer_whose_patterns_take_for_ever(build_model: Any, tmp_path: Path) -> None:
    """Its library is one of Rust, and what that raises went past every `except Exception`."""
    build_model().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    pattern = {"Regex": "(a|a)*(a+)+$"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps({**values, "pre_tokenizer": split}))
    model = NatureLM.from_pretrained(tmp_path / "model")
    text = "a" * 100 + "!"
    words = "the tokenizer of the model cannot take 'a"
    for call in (
        lambda: token_ids(text, model.tokenizer),
        lambda: continued_tokens(text, model.tokenizer),
        lambda: Engine(model).check(Prompt(key=None, prompt=text, audios=())),
    ):
        assert words in refusal(call)
