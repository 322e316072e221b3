"""LoRA adapters as files: PEFT's own format in and out, and that inside a checkpoint of ours.

PEFT names tensors `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`; other tools
leave the prefix out, put another one there, or keep the adapter's name before `weight`. All of
these are read.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from NatureLM.errors import UsageError
from NatureLM.merging.lora import PEFT_PREFIX, AdapterDeltas, LoraDelta
from NatureLM.models.checkpoint.tensors import StoredTensor, index_folder, read_header, write_file
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.models.registry import (
    CheckpointError,
    apart,
    download,
    find_checkpoint,
    is_hub_id,
    read_config,
    read_json,
)
from NatureLM.util import shown, write_json

try:
    from re import _parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as _parser

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_LORA_TENSOR = re.compile(r"(?P<path>.+)\.lora_(?P<part>[AB])(?:\.(?P<name>[^.]+))?\.weight")
# PEFT's names of the settings of an adapter, and those of our configuration
_SETTINGS = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
}
# What stands in PEFT's configuration and changes no answer. All else is refused unless it is off:
# a setting that is not known here never loads other weights than PEFT's.
_HARMLESS = frozenset(
    {
        *_SETTINGS,  # read: rank, alpha and what they are by layer; dropout is for training
        "peft_type",  # must be LORA
        "task_type",  # the class that PEFT wraps the model in
        "auto_mapping",  # the class of the base model, by name
        "peft_version",  # of the program that wrote it
        "base_model_name_or_path",  # where the base model lay; shapes are checked
        "revision",  # of that
        "inference_mode",  # whether PEFT lets its weights be trained
        "target_modules",  # layers that are adapted; compared with those in the file
        "exclude_modules",  # of these, layers that are not
        "layers_to_transform",  # of these, numbers of layers that are
        "layers_pattern",  # how the list of layers is called
        "eva_config",  # EVA chooses where lora_A begins; ranks that it chose stand in rank_pattern
        "runtime_config",  # where PEFT computes
        "megatron_core",  # a name that only megatron_config uses
        "qalora_group_size",  # a number that only use_qalora uses
    }
)
# Ways to begin an adapter that leave the base model's weights alone: what is trained then is all
# in lora_A and lora_B.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")
"""Ways that take a part out of the base weights, which PEFT can write as plain LoRA."""
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
    "lora_bias": "biases of the adapter",
    "modules_to_save": "whole modules beside the adapter",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "adapted parameters that are no layers",
    "layer_replication": "repeated layers",
    "fan_in_fan_out": "transposed weights",
    "alora_invocation_tokens": "an activated adapter (aLoRA)",
    "arrow_config": "routing between adapters",
    "kasa_config": "truncated base weights and a third matrix (KaSA)",
    "monteclora_config": "sampled weights (MonteCLoRA)",
    "velora_config": "compressed activations (VeLoRA)",
    "megatron_config": "layers of Megatron",
    "loftq_config": "quantised base weights (LoftQ)",
    "corda_config": "changed base weights (CorDA)",
    "lora_ga_config": "changed base weights (LoRA-GA)",
    "ensure_weight_tying": "tied layers",
}


@dataclass(frozen=True)
class StoredLayer:
    """The update of one layer as it lies in a file."""

    a: StoredTensor
    b: StoredTensor
    rank: int
    alpha: float
    scale: float  # of the update, which is alpha / rank, or alpha / √rank


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in a folder, checked against a language model."""

    label: str
    layers: Mapping[str, StoredLayer]
    use_rslora: bool
    dropout: float
    files: tuple[Path, ...]

    @property
    def deltas(self) -> AdapterDeltas:
        """The updates, mapped from their files in the dtype that they are stored in."""
        cpu = torch.device("cpu")
        return {
            target: LoraDelta(one.a.read(one.a.dtype, cpu), one.b.read(one.b.dtype, cpu), one.scale)
            for target, one in self.layers.items()
        }


def open_adapter(path_or_id: str | Path, linears: Mapping[str, tuple[int, int]]) -> StoredAdapter:
    """The adapter in a folder or Hub repository: of PEFT, or that of a NatureLM checkpoint.

    `linears` are the language model's linear layers with their shapes (outputs, inputs). Raises
    CheckpointError for what is not there, not understood or does not fit.
    """
    folder = _find(path_or_id)
    if (folder / CONFIG_FILE).is_file():
        settings = _read_settings(folder / CONFIG_FILE)
        tensors = read_header(_weights(folder))
        files: tuple[Path, ...] = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    elif (folder / "config.json").is_file():
        settings = adapter_settings(read_config(folder))
        _check_numbers(folder / "config.json", settings)
        tensors = [one for name, one in index_folder(folder).items() if ".lora_" in name]
        if not tensors:
            raise CheckpointError(f"{folder} is a model without an adapter (it was merged)")
        files = (folder / "config.json", *sorted({tensor.path for tensor in tensors}))
    else:
        raise CheckpointError(f"{folder} holds no {CONFIG_FILE}: it is not an adapter")
    return stored_adapter(str(path_or_id), tensors, settings, linears, files)


def stored_adapter(
    label: str,
    tensors: Iterable[StoredTensor],
    settings: Mapping[str, Any],
    linears: Mapping[str, tuple[int, int]],
    files: tuple[Path, ...] = (),
) -> StoredAdapter:
    """An adapter from its tensors and PEFT's settings (r, lora_alpha, use_rslora, patterns)."""
    pairs = _pairs(label, tensors)
    if len(pairs) > len(linears):
        raise CheckpointError(
            f"adapter {label} does not fit this model: it is for {len(pairs)} layers, and the "
            f"language model has {len(linears)} linear ones"
        )
    use_rslora, names = bool(settings.get("use_rslora")), _Names(label, len(linears))
    layers: dict[str, StoredLayer] = {}
    problems: list[str] = []
    for path, parts in sorted(pairs.items()):
        target = _target(path, linears)
        if target is None or target in layers:
            problems.append(f"the language model has no linear layer {path}")
            continue
        if not _is_adapted(settings, path, target, names):
            problems.append(
                f"PEFT leaves {path} out, by target_modules, exclude_modules or "
                f"layers_to_transform of {CONFIG_FILE}"
            )
            continue
        if set(parts) != {"A", "B"}:
            problems.append(f"{path} has only one of lora_A and lora_B")
            continue
        rank = int(_setting(settings, "rank_pattern", path, settings["r"], names))
        alpha = float(_setting(settings, "alpha_pattern", path, settings["lora_alpha"], names))
        scale = _scale(alpha, rank, use_rslora)
        outputs, inputs = linears[target]
        for part, needed in (("A", (rank, inputs)), ("B", (outputs, rank))):
            if parts[part].shape != needed:
                problems.append(f"{path}.lora_{part} is {parts[part].shape} (needed {needed})")
        layers[target] = StoredLayer(parts["A"], parts["B"], rank, alpha, scale)
    if not pairs:
        problems.append("it holds no LoRA tensors")
    if problems:
        shown = [*problems[:8], *([f"and {len(problems) - 8} more"] if problems[8:] else [])]
        raise CheckpointError(
            f"adapter {label} does not fit this model; nothing was loaded.\n"
            + "\n".join(f"  {one}" for one in shown)
        )
    return StoredAdapter(label, layers, use_rslora, float(settings.get("lora_dropout") or 0), files)


def _scale(alpha: float, rank: int, use_rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def _setting(
    settings: Mapping[str, Any], patterns: str, path: str, otherwise: Any, names: _Names
) -> Any:
    """The rank or alpha of a layer: that of the first pattern that fits its end, as in PEFT."""
    own = _unwrapped(path)
    values = (settings.get(patterns) or {}).items()
    return next((value for key, value in values if names.ends(key, own)), otherwise)


def adapter_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings of the adapter that a checkpoint of ours or the reference describes."""
    settings = {
        name: values.get(key, getattr(NatureLMConfig, key)) for name, key in _SETTINGS.items()
    }
    return settings | {name: settings[name] or {} for name in ("rank_pattern", "alpha_pattern")}


def configure_adapter(
    config: NatureLMConfig, adapter: StoredAdapter, linears: Collection[str]
) -> NatureLMConfig:
    """The configuration of a model that has this adapter as its own."""
    settings = settings_of(
        {target: layer.rank for target, layer in adapter.layers.items()},
        {target: layer.alpha for target, layer in adapter.layers.items()},
        linears,
    )
    settings |= {"lora_dropout": adapter.dropout, "use_rslora": adapter.use_rslora}
    changed = copy.deepcopy(config)
    changed.lora, changed.lora_target_modules = True, settings["target_modules"]
    for name, key in _SETTINGS.items():
        setattr(changed, key, None if settings[name] == {} else settings[name])
    return changed


def layers_to_adapt(
    config: NatureLMConfig, linears: Collection[str]
) -> dict[str, tuple[int, float]]:
    """(rank, scale) of the layers that a model's own adapter changes, as PEFT chooses them.

    Raises UsageError where the configuration names none that is there.
    """
    wanted, settings = config.lora_target_modules or [], adapter_settings(config.to_dict())
    names = _Names("of the model", len(linears))
    layers: dict[str, tuple[int, float]] = {}
    for target in linears:
        if names.fit(wanted, target):
            rank = int(_setting(settings, "rank_pattern", target, settings["r"], names))
            alpha = _setting(settings, "alpha_pattern", target, settings["lora_alpha"], names)
            layers[target] = rank, _scale(alpha, rank, settings["use_rslora"])
    if not layers:
        known = ", ".join(sorted({target.rpartition(".")[2] for target in linears}))
        raise UsageError(
            f"lora_target_modules is {shown(wanted)}, and none of these is a linear layer of the "
            f"language model, which has {known}"
        )
    return layers


def settings_of(
    ranks: Mapping[str, int], alphas: Mapping[str, float], linears: Collection[str]
) -> dict[str, Any]:
    """PEFT's settings of an adapter with these ranks and alphas (by target).

    The most frequent rank and alpha stand for all; others become patterns. Targets go by their last
    parts where these mean no other of the linear layers.
    """
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    ((alpha, _),) = Counter(alphas.values()).most_common(1)
    short = {target.rpartition(".")[2] for target in ranks}
    meant = {name for name in linears if name.rpartition(".")[2] in short}
    return {
        "r": rank,
        "lora_alpha": _integer_if_whole(alpha),
        "target_modules": sorted(short if meant == set(ranks) else ranks),
        "rank_pattern": {target: one for target, one in ranks.items() if one != rank},
        "alpha_pattern": {t: _integer_if_whole(one) for t, one in alphas.items() if one != alpha},
    }


def _integer_if_whole(alpha: float) -> int | float:
    return int(alpha) if alpha == int(alpha) else alpha


def _find(path_or_id: str | Path) -> Path:
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds {CONFIG_FILE}")
    if is_hub_id(str(path_or_id)):
        return download(*apart(str(path_or_id)), [CONFIG_FILE, WEIGHTS_FILE])
    try:
        return find_checkpoint(path_or_id)  # a name of ours
    except CheckpointError:
        raise CheckpointError(
            f"no adapter {str(path_or_id)!r}: it is neither a folder nor a Hugging Face id"
        ) from None


def _weights(folder: Path) -> Path:
    pickle = folder / "adapter_model.bin"
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    if pickle.exists():
        raise CheckpointError(
            f"{pickle} is a pickle file, which can run code when it is opened; only "
            f"{WEIGHTS_FILE} is loaded. Where you trust it, load it with PEFT and save it again: "
            "save_pretrained(folder) writes safetensors."
        )
    raise CheckpointError(f"{folder} holds no {WEIGHTS_FILE}")


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {shown(kind)}, and only LORA adapters are merged"
        )
    _check_numbers(path, settings)
    _check_names(path, settings)
    begun = settings.get("init_lora_weights", True)
    refused = [
        f"{shown(key)[1:-1]} = {json.dumps(value)[:100]} "
        f"({_REFUSED.get(key, 'a setting that is not known here')})"
        for key, value in settings.items()
        if key not in {*_HARMLESS, "bias", "init_lora_weights"} and not _is_off(value)
    ]
    if settings.get("bias", "none") != "none":
        refused.append(f"bias {shown(settings['bias'])}")
    remedy = ""
    if begun not in _PLAIN_BEGINNINGS or (isinstance(begun, int) and not isinstance(begun, bool)):
        refused.append(
            f"init_lora_weights = {json.dumps(begun)[:100]} (it changes the base weights)"
        )
        if str(begun).startswith(_CONVERTIBLE):
            remedy = _conversion(settings)
    if refused:
        raise CheckpointError(
            f"{path} asks for {', '.join(refused[:8])}, which is not supported: only plain LoRA "
            f"and rsLoRA are.{remedy}"
        )
    return settings


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _conversion(settings: Mapping[str, Any]) -> str:
    if settings.get("use_rslora") and any(map(settings.get, ("rank_pattern", "alpha_pattern"))):
        return " PEFT cannot write it as plain LoRA, because it is rsLoRA with patterns."
    return (
        " PEFT writes it as plain LoRA where the adapter as it was before training is kept: "
        "model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=FOLDER_BEFORE)."
    )


def _check_numbers(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a rank, an alpha or their patterns are none."""
    named: dict[str, Any] = {key: settings.get(key) for key in ("r", "lora_alpha")}
    for patterns in ("rank_pattern", "alpha_pattern"):
        values = settings.get(patterns) or {}
        if not isinstance(values, dict) or len(values) > _MOST_NAMES:
            raise CheckpointError(
                f"{path}: {patterns} is {shown(values)}, and it must be an object of at most "
                f"{_MOST_NAMES:,} names"
            )
        named |= {f"{patterns}.{layer}": value for layer, value in values.items()}
    for key, value in named.items():
        is_rank = key.startswith("r")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= 1e9 or (is_rank and value != int(value)):
            kind = "whole number" if is_rank else "number"
            raise CheckpointError(
                f"{path}: {shown(key)[1:-1]} is {shown(value)}, and it must be a {kind} above 0 "
                "and no more than 1e9"
            )
    dropout = settings.get("lora_dropout") or 0.0
    if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise CheckpointError(
            f"{path}: lora_dropout is {shown(dropout)}, and it must be a number from 0 to 1"
        )
    scaled = settings.get("use_rslora")
    if scaled not in (None, True, False):
        raise CheckpointError(
            f"{path}: use_rslora is {shown(scaled)}, and it must be true or false"
        )


def _check_names(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError where names of layers, or numbers of them, are none."""
    for key in ("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"):
        value = settings.get(key)
        if key == "layers_pattern" and settings.get("layers_to_transform") is None:
            continue  # then it is for nothing
        kind: type = int if key == "layers_to_transform" else str
        entries = value if isinstance(value, list) else [] if value in (None, {}) else [value]
        if not all(type(one) is kind for one in entries) or len(entries) > _MOST_NAMES:
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}, and it must be a "
                f"{'number' if kind is int else 'name'} or a list of at most {_MOST_NAMES:,}"
            )
        if key == "layers_pattern" and not all(map(_PLAIN.fullmatch, entries)):
            raise CheckpointError(
                f"{path}: layers_pattern is {shown(value)}, and it must be plain names of layers"
            )


# -- names of layers ------------------------------------------------------------------------

_MOST_NAMES = 10_000
_PLAIN = re.compile(r"[\w.-]*")
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda one: one.isalnum() or one == "_",
}


def _is_adapted(settings: Mapping[str, Any], path: str, target: str, names: _Names) -> bool:
    """Whether PEFT takes the update of a layer, or leaves it out for its settings say so."""
    wanted = settings.get("target_modules")
    if wanted in (None, "all-linear"):
        return True
    excluded = settings.get("exclude_modules")
    return any(
        names.fit(wanted, name)
        and not (excluded and names.fit(excluded, name))
        and (isinstance(wanted, str) or _has_number(settings, name))
        for name in (_unwrapped(path), target)
    )


def _has_number(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a layer's number, the first in its name, is among `layers_to_transform`."""
    wanted = settings.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = settings.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        before = r".*?\." if pattern == r"[^.]*" else r"(?:^|.*?\.)"
        if found := re.match(rf"{before}{pattern}\.(\d{{1,9}})\.", name):
            return int(found[1]) in (wanted if isinstance(wanted, list) else [wanted])
    return False


class _Names:
    """Which names of layers the patterns of an adapter mean, as PEFT understands them.

    They are a stranger's, and `re` can be made to take years. So all ways through a pattern are
    followed at once, from character to character; what takes too many steps in all is refused.
    """

    def __init__(self, label: str, layers: int) -> None:
        self._label, self._left = label, 200_000 + 2_000 * layers
        self._read: dict[str, Any] = {}

    def fit(self, wanted: str | list[str], name: str) -> bool:
        """Whether the pattern is the whole name, or an entry of the list is the name or its end."""
        if isinstance(wanted, str):
            return len(name) in self._ends(self._parsed(wanted), name, frozenset({0}))
        self._spend(len(wanted), wanted)
        return any(name == one or name.endswith(f".{one}") for one in wanted)

    def ends(self, pattern: str, name: str) -> bool:
        """Whether the pattern is the name, or what stands behind one of its dots."""
        if _PLAIN.fullmatch(pattern):  # most of them; a dot is any character
            self._spend(1, pattern)
            end = name[-len(pattern) :] if len(pattern) <= len(name) else ""
            behind = name[: len(name) - len(pattern)]
            alike = all(a in (b, ".") for a, b in zip(pattern, end, strict=False))
            return bool(end) and behind[-1:] in ("", ".") and alike
        starts = frozenset({0, *(place + 1 for place, one in enumerate(name) if one == ".")})
        return len(name) in self._ends(self._parsed(pattern), name, starts)

    def _spend(self, steps: int, what: Any) -> None:
        self._left -= steps
        if self._left < 0:
            raise CheckpointError(
                f"adapter {self._label}: its patterns, such as {shown(what)}, take too long to "
                f"compare with names of layers; name the layers in {CONFIG_FILE}"
            )

    def _parsed(self, pattern: str) -> Any:
        if pattern not in self._read:
            self._spend(20 * len(pattern), pattern)
            try:
                if len(pattern) > 2000:
                    raise ValueError("it has more than 2,000 characters")
                self._read[pattern] = _parser.parse(pattern)
                if self._read[pattern].state.flags & ~re.UNICODE:
                    raise ValueError("it has flags, such as (?i)")
            except (re.error, ValueError, OverflowError, RecursionError) as error:
                raise CheckpointError(
                    f"adapter {self._label}: {shown(pattern)} in {CONFIG_FILE} is no pattern of "
                    f"names that can be read ({error})"
                ) from None
        return self._read[pattern]

    def _ends(self, tree: Any, name: str, starts: frozenset[int]) -> frozenset[int]:
        """Where matches that begin at `starts` end."""
        for operation, value in tree:
            self._spend(1 + len(starts), name)
            kind = str(operation)
            if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
                starts = frozenset(
                    at + 1 for at in starts if at < len(name) and _is_one(kind, value, name[at])
                )
            elif kind == "BRANCH":
                starts = frozenset().union(*(self._ends(one, name, starts) for one in value[1]))
            elif kind == "SUBPATTERN" and not value[1] and not value[2]:
                starts = self._ends(value[3], name, starts)
            elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
                least, most, inner = value
                starts = self._repeated(least, int(most), inner, name, starts)
            elif kind == "AT":
                starts = frozenset(at for at in starts if _is_place(str(value), name, at))
            elif kind in ("ASSERT", "ASSERT_NOT") and value[0] == 1:
                wanted = kind == "ASSERT"
                starts = frozenset(
                    at
                    for at in starts
                    if bool(self._ends(value[1], name, frozenset({at}))) is wanted
                )
            else:
                raise CheckpointError(
                    f"adapter {self._label}: a pattern of names in {CONFIG_FILE} has what is not "
                    f"understood here ({kind.lower()}); name the layers instead"
                )
        return starts

    def _repeated(
        self, least: int, most: int, tree: Any, name: str, now: frozenset[int]
    ) -> frozenset[int]:
        reached = now if least == 0 else frozenset[int]()
        for count in range(1, most + 1):
            after = self._ends(tree, name, now)
            settled = after == now  # so it stays, however often
            if count >= least or settled:
                if most == int(_parser.MAXREPEAT):
                    after -= reached
                reached |= after
            if settled or not after:
                break
            now = after
        return reached


def _is_one(kind: str, value: Any, character: str) -> bool:
    """Whether a character is of those that a pattern's part means."""
    if kind == "ANY":
        return character != "\n"
    if kind in ("LITERAL", "NOT_LITERAL"):
        return (ord(character) == value) is (kind == "LITERAL")
    negated, found = False, False
    for part, inner in value:
        if str(part) == "NEGATE":
            negated = True
        elif str(part) == "RANGE":
            found |= inner[0] <= ord(character) <= inner[1]
        elif str(part) == "LITERAL":
            found |= ord(character) == inner
        else:
            plain = str(inner).replace("_NOT_", "_")
            found |= _CATEGORIES[plain](character) is (plain == str(inner))
    return found is not negated


def _is_place(kind: str, name: str, at: int) -> bool:
    """Whether a place in a name is its begin or end, or the border of a word."""
    if kind.startswith("AT_BEGINNING"):
        return at == 0
    if kind.startswith("AT_END"):
        return at == len(name)
    is_word = _CATEGORIES["CATEGORY_WORD"]
    before, behind = (bool(one) and is_word(one) for one in (name[at - 1 : at], name[at : at + 1]))
    return (before is not behind) is (kind == "AT_BOUNDARY")


def _pairs(label: str, tensors: Iterable[StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """{path of a module: {"A": …, "B": …}}; anything else in the file is refused."""
    pairs: dict[str, dict[str, StoredTensor]] = {}
    names: set[str | None] = set()
    strange: list[str] = []
    for tensor in tensors:
        if len(tensor.name) < 500 and (found := _LORA_TENSOR.fullmatch(tensor.name)):
            names.add(found["name"])
            pairs.setdefault(found["path"], {})[found["part"]] = tensor
        else:
            strange.append(tensor.name)
    if strange:
        raise CheckpointError(
            f"adapter {label} holds tensors that are no plain LoRA: "
            + ", ".join(shown(name)[1:-1] for name in strange[:5])
        )
    if len(names) > 1:
        raise CheckpointError(
            f"adapter {label} holds several adapters: {', '.join(sorted(map(str, names)))}"
        )
    return pairs


def _unwrapped(path: str) -> str:
    return path.removeprefix("llama_model.").removeprefix(PEFT_PREFIX)


def _target(path: str, linears: Collection[str]) -> str | None:
    """The linear layer that a path of any prefix means; the longest name that fits."""
    own = _unwrapped(path)
    fitting = [name for name in linears if own == name or path.endswith(f".{name}")]
    if fitting:
        return own if own in fitting else max(fitting, key=len)
    # saved from the model without its head: layers.0…, for model.layers.0…
    fitting = [name for name in linears if name.endswith(f".{own}")]
    return fitting[0] if len(fitting) == 1 else None


def write_adapter(
    folder: Path, deltas: AdapterDeltas, linears: Collection[str], *, config: NatureLMConfig
) -> None:
    """Write an adapter in PEFT's format; its scales are those of the updates."""
    folder.mkdir(parents=True, exist_ok=True)
    power = 0.5 if config.use_rslora else 1.0
    alphas = {target: one.scale * one.rank**power for target, one in deltas.items()}
    for target, alpha in alphas.items():
        if math.isclose(alpha, round(alpha), rel_tol=1e-12):
            alphas[target] = float(round(alpha))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.llama_path,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        **settings_of({target: one.rank for target, one in deltas.items()}, alphas, linears),
    }
    tensors = {}
    for target, update in deltas.items():
        tensors[f"{PEFT_PREFIX}{target}.lora_A.weight"] = update.a_KI
        tensors[f"{PEFT_PREFIX}{target}.lora_B.weight"] = update.b_OK
    write_file(tensors, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, settings)
