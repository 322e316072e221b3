"""Files that are spoilt at random: each is refused in one sentence, in bounds, or it works."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from NatureLM.errors import NatureLMError
from NatureLM.inference.calibration import read_calibration, write_calibration
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.export import convert_checkpoint
from NatureLM.models.checkpoint.peft_io import open_adapter
from NatureLM.models.checkpoint.tensors import index_folder
from NatureLM.results.rows import from_line, read_record
from NatureLM.search.index import IndexSettings, open_index
from NatureLM.training.outputs import Checkpoint
from tests.models.test_strangers import (
    ADAPTER,
    CALIBRATION,
    INDEX,
    LINEARS,
    STATE,
    WEIGHTS,
    bounded,
    npz,
    pickled,
)

HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 0.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63),
    *(10**30, "", "x", "x" * 3000, "../..", "(((", "(a+)+!", "\0", "\ud800", "é", [], {}),
    *([[]], [1] * 5000, ["x"] * 500, {"x": 1}, {"": {}}, {str(n): n for n in range(3000)}),
)


def spoilt(values: Any, chance: random.Random) -> Any:
    """A JSON document in which up to three values are other ones, or gone."""
    values = json.loads(json.dumps(values))
    for _ in range(chance.randint(1, 3)):
        place, key = values, None
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = chance.choice(keys)
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.3:
                break
            place = inner
        if key is None or not isinstance(place, (dict, list)) or not place:
            return copy.deepcopy(chance.choice(HOSTILE))
        if chance.random() < 0.1:
            del place[key]
        elif isinstance(place, dict) and chance.random() < 0.1:
            place[str(chance.choice(HOSTILE))[:50]] = place.pop(key)
        else:
            place[key] = copy.deepcopy(chance.choice(HOSTILE))
    return values


def spoilt_bytes(data: bytes, chance: random.Random) -> bytes:
    """A file of which some bytes are others, or which is cut."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        made[chance.randrange(len(made))] = chance.choice(
            (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
        )
    return bytes(made[: chance.randrange(len(made))] if chance.random() < 0.2 else made)


ROW = {
    "audio_path": "a.wav", "audio_bytes": 3, "audio_modified": None, "audio_digest": None,
    "audio_folder": None, "start": 0.0, "end": 1.0, "query": "?", "response": "Owl",
    "merging_alpha": 1.0, "model": "m", "run": "r", "schema_version": 1, "alternatives": [],
}  # fmt: skip


class Attack:
    """Doors that a stranger's file goes through, each with a file that is good but for little."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.own = Path(shutil.copytree(model, folder / "own"))
        for name in ("json", "adapter"):
            (folder / name).mkdir()
        self.config = json.loads((model / "config.json").read_text())
        self.tensors = {
            f"{name}.lora_{part}.weight": torch.zeros(shape)
            for name in LINEARS
            for part, shape in (("A", (2, 64)), ("B", (64, 2)))
        }
        save_file(self.tensors, folder / "adapter" / "adapter_model.safetensors")
        shutil.copy(
            folder / "adapter" / "adapter_model.safetensors", folder / "json" / "a.safetensors"
        )
        data = (folder / "json" / "a.safetensors").read_bytes()
        self.length = int.from_bytes(data[:8], "little")
        self.header, self.rest = json.loads(data[8 : 8 + self.length]), data[8 + self.length :]
        self.npz = npz(folder).read_bytes()
        self.pickle = pickled(folder / "a.pth", {"model": {"a": torch.arange(7.0)}}).read_bytes()
        (folder / "a.jsonl").touch()

    def config_json(self, chance: random.Random) -> None:
        (self.own / "config.json").write_text(json.dumps(spoilt(self.config, chance)))
        NatureLM.from_pretrained(self.own)

    def index_json(self, chance: random.Random) -> None:
        values = {"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}, "metadata": {}}
        (self.folder / "json" / INDEX).write_text(json.dumps(spoilt(values, chance)))
        index_folder(self.folder / "json")

    def adapter_config_json(self, chance: random.Random) -> None:
        names = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"^model.*k_proj": 3}}
        choice = {"target_modules": r".*\.(q|k|v|o)_proj", "exclude_modules": ["x"]}
        more = {"lora_dropout": 0.1, "use_rslora": False, "layers_to_transform": [0, 1]}
        values = spoilt({**ADAPTER, **names, **choice, **more}, chance)
        (self.folder / "adapter" / "adapter_config.json").write_text(json.dumps(values))
        open_adapter(self.folder / "adapter", LINEARS)

    def safetensors(self, chance: random.Random) -> None:
        text = json.dumps(spoilt(self.header, chance)).encode()
        data = struct.pack("<Q", len(text)) + text + self.rest
        if chance.random() < 0.4:
            data = spoilt_bytes(data[: self.length], chance) + data[self.length :]
        (self.folder / "json" / WEIGHTS).write_bytes(data)
        (self.folder / "json" / INDEX).unlink(missing_ok=True)
        index_folder(self.folder / "json")

    def indexes(self, chance: random.Random) -> None:
        path = self.folder / "index.npz"
        if chance.random() < 0.5:
            path.write_bytes(spoilt_bytes(self.npz, chance))
        else:
            good = json.loads(IndexSettings("m", "f", "e", 4, 16000, 1.0, 1.0).to_json())
            text = json.dumps(spoilt({**good, "heard": [["a", "a", 3, None, None]]}, chance))
            npz(self.folder, settings=np.array(text))
        list(open_index(path).blocks())

    def pickles(self, chance: random.Random) -> None:
        (self.folder / "a.pth").write_bytes(spoilt_bytes(self.pickle, chance))
        convert_checkpoint(self.folder / "a.pth", self.folder / "out", allow_pickle=True)

    def calibrations(self, chance: random.Random) -> None:
        path = self.folder / "calibration.json"
        write_calibration(CALIBRATION, path)
        path.write_text(json.dumps(spoilt(json.loads(path.read_text()), chance)))
        read_calibration(path)

    def rows(self, chance: random.Random) -> None:
        from_line(json.dumps(spoilt(ROW, chance)).encode(), "a.jsonl", 1)

    def records(self, chance: random.Random) -> None:
        record = {
            "schema_version": 1,
            "run": "x",
            "settings": {"a": [1]},
            "asked": {},
            "folder": "/",
        }
        (self.folder / "a.jsonl.run.json").write_text(json.dumps(spoilt(record, chance)))
        read_record(self.folder / "a.jsonl")

    def states(self, chance: random.Random) -> None:
        (self.folder / "state.json").write_text(json.dumps(spoilt(STATE, chance)))
        Checkpoint(3, self.folder).state()


DOORS = [name for name, one in vars(Attack).items() if not name.startswith("_") and callable(one)]


def _attack(attack: Attack, door: str, seed: int) -> None:
    said = "nothing was wrong"
    with bounded():
        try:
            getattr(attack, door)(random.Random(seed))
        except NatureLMError as error:
            said = str(error)
    assert 10 < len(said) < 4000, said[:200]


@pytest.fixture(scope="module")
def attack(build_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Attack:
    folder = tmp_path_factory.mktemp("attack")
    build_model().save_pretrained(folder / "model")
    NatureLM.from_pretrained(folder / "model")  # what is imported late is not the file's
    made = Attack(folder / "model", folder)
    with pytest.raises(NatureLMError):  # what PyTorch imports for its first pickle
        convert_checkpoint(Path(__file__), made.folder / "x", allow_pickle=True)
    convert_checkpoint(made.folder / "a.pth", made.folder / "out", allow_pickle=True)
    return made


@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_files_that_are_spoilt_at_random(door: str, seed: int, attack: Attack) -> None:
    _attack(attack, door, seed)


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_two_thousand_files_that_are_spoilt_at_random(door: str, seed: int, attack: Attack) -> None:
    _attack(attack, door, seed)
