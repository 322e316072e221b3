"""What a model takes, what is free, and the precision that is taken or refused.

Layers of the language model that stay in RAM answer as those that do not.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import naturelm
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig

from NatureLM import memory
from NatureLM.errors import UsageError
from NatureLM.generation.engine import Engine, GenerationOptions, Request, fold_if_single_alpha
from NatureLM.memory import MEMORY_VARIABLE, FreeMemory, control_groups, free_memory
from NatureLM.models import NatureLM, NatureLMConfig, fit, speed
from NatureLM.models.checkpoint import load
from NatureLM.models.checkpoint.load import build_on_meta, open_checkpoint, outline_of
from NatureLM.models.checkpoint.tensors import Precision, tensor_refs
from NatureLM.models.fit import (
    Need,
    Outline,
    Placement,
    Work,
    best_within,
    choose,
    copy_to_run,
    layers_of,
    need_of,
    precisions,
)

CPU, CARD = torch.device("cpu"), torch.device("cuda")
GB = 10**9
CLIP = Path(__file__).parents[2] / "assets" / "synthetic_cat.flac"


@cache
def outline() -> Outline:
    """A language model of 1.4 B parameters behind the published encoder; nothing is stored."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 20}
    text = LlamaConfig(vocab_size=32_000, num_attention_heads=16, num_key_value_heads=4, **sizes)
    model = build_on_meta(NatureLM, NatureLMConfig(text_config=text.to_dict()), None)
    return Outline(model, tensor_refs(model), {})


@cache
def embedded() -> Outline:
    return outline_of(NatureLM, open_checkpoint("naturelm-tiny"))[0]


def free(gigabytes: float) -> FreeMemory:
    return FreeMemory(int(gigabytes * GB), "RAM")


def totals(device: torch.device = CPU) -> dict[str, float]:
    """Gigabytes of each precision."""
    needs = [need_of(outline(), one, device.type) for one in precisions(outline(), device)]
    return {need.precision.name: need.total / GB for need in needs}


# -- what is needed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "index"),
    [({"dtype": "float32"}, 0), ({"quantize": "int8"}, 2), ({"quantize": "int4"}, 3)],
)
def test_weights_are_reckoned_to_the_byte(options: dict[str, Any], index: int) -> None:
    need = need_of(embedded(), precisions(embedded(), CPU)[index], "cpu")
    model = NatureLM.from_pretrained("naturelm-tiny", **options)
    tensors = [ref.tensor for ref in tensor_refs(model)]
    assert need.weights == sum(one.nbytes for one in tensors)
    assert sum(need.layers) == sum(
        parameter.nbytes for parameter in layers_of(model.language_model).parameters()
    )


def test_rows_and_positions_count() -> None:
    precision = Precision(torch.bfloat16, torch.float32)
    one, more = (need_of(outline(), precision, "cpu", Work(rows, 1000)) for rows in (1, 8))
    # two of them, of 20 layers, 4 heads, 128 numbers of 2 bytes each
    assert one.keys_values == 1000 * 2 * 20 * 4 * 128 * 2
    assert more.keys_values == 8 * one.keys_values
    assert more.activations > one.activations


def test_without_its_language_model_a_model_is_small() -> None:
    side = replace(
        outline(),
        audio_only=True,
        refs=[ref for ref in outline().refs if not ref.stored_name.startswith("llama_")],
    )
    need = need_of(side, Precision(torch.float32, torch.float32), "cpu")
    assert need.keys_values == 0
    assert need.layers == ()
    assert need.total < 1.5 * GB


# -- what is taken --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8", "int4"])
def test_the_best_that_fits_is_taken_with_one_note(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    placement = choose(outline(), CPU, free=free(totals()[name] + 0.01))
    assert placement.precision.name == name
    assert placement.layers is None
    assert len(caplog.records) == (name != "float32")
    if name != "float32":
        assert f"is loaded in {name}" in caplog.text
        assert fit.COSTS[name] in caplog.text


def test_nothing_fits() -> None:
    with pytest.raises(UsageError, match="no precision fits; free some of it, or take a smaller"):
        choose(outline(), CPU, free=free(totals()["int4"] - 0.01))


def test_what_was_asked_for_is_refused_with_what_would_fit() -> None:
    asked = Precision(torch.float32, torch.float32)
    with pytest.raises(UsageError) as caught:
        choose(outline(), CPU, asked, free(totals()["bfloat16"] + 0.01))
    text = str(caught.value)
    assert "in float32 needs" in text
    assert "of RAM are free: take --dtype bfloat16 (" in text
    assert "--quantize int8 (" in text
    assert MEMORY_VARIABLE in text
    with pytest.raises(UsageError, match="no precision fits, int4 needs"):
        choose(outline(), CPU, asked, free(0.5))


@cache
def needs() -> list[Need]:
    return [need_of(outline(), one, "cpu") for one in precisions(outline(), CPU)]


@given(less=st.floats(0.1, 20), more=st.floats(0.1, 20))
def test_more_memory_never_chooses_a_worse_precision(less: float, more: float) -> None:
    less, more = sorted((less, more))
    with_less, with_more = (best_within(needs(), free(one)) for one in (less, more))
    if with_less is not None:
        assert with_more is not None
        assert needs().index(with_more) <= needs().index(with_less)


@cache
def need_of_a_card() -> Need:
    return need_of(outline(), Precision(torch.bfloat16, torch.float32), "cuda")


@given(gigabytes=st.floats(0.1, 12))
def test_layers_that_a_card_does_not_hold_stay_in_ram(gigabytes: float) -> None:
    need = need_of_a_card()
    kept = need.layers_to_keep(free(gigabytes))
    if kept < 0:
        return
    on_card = need.total - sum(need.layers[kept:])
    assert kept <= len(need.layers) == 20
    assert kept == 20 or on_card + max(need.layers) <= gigabytes * GB


def test_a_small_card_keeps_some_layers_in_ram(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit, "free_memory", lambda device="cpu": free(16))
    placement = choose(outline(), CARD, free=free(totals(CARD)["int4"] - 0.3))
    assert placement.precision.name == "int4"
    assert placement.layers is not None
    assert 0 <= placement.layers < 20
    assert "stay in RAM" in caplog.text
    asked = Precision(torch.bfloat16, torch.float32)
    assert choose(outline(), CARD, asked, free(3)).layers is not None
    assert choose(outline(), CARD, asked, free(20)).layers is None
    monkeypatch.setattr(fit, "free_memory", lambda device="cpu": free(0.1))
    with pytest.raises(UsageError, match="in bfloat16 needs"):
        choose(outline(), CARD, asked, free(3))


# -- what is free ---------------------------------------------------------------------------


def files(root: Path, **contents: str) -> Path:
    """Files below a made-up root; `__` in a name stands for a slash."""
    for name, text in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def bounds(root: Path) -> list[int]:
    return [one.bytes for one in control_groups(root)]


def test_available_memory_of_linux(tmp_path: Path) -> None:
    text = "MemTotal:       16000 kB\nMemAvailable:    9000 kB\n"
    assert memory.available(files(tmp_path, proc__meminfo=text)) == 9000 * 1024


def write_group(root: Path, group: str, **values: str) -> None:
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("_", ".", 1)).write_text(value)


def test_control_groups_of_version_2_and_those_above(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="0::/user/job\n")
    write_group(tmp_path, "user", memory_max="5000\n", memory_current="1000\n")
    write_group(tmp_path, "user/job", memory_max="max\n", memory_current="900\n")
    assert bounds(tmp_path) == [4000]
    stat = "anon 100\ninactive_file 300\nactive_file 200\n"
    write_group(tmp_path, "user/job", memory_max="2000", memory_current="900", memory_stat=stat)
    assert sorted(bounds(tmp_path)) == [1600, 4000]


def test_a_container_whose_path_is_that_of_the_machine(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="0::/machine/docker-1234\n")
    write_group(tmp_path, ".", memory_max="3000", memory_current="4000")
    assert bounds(tmp_path) == [0]


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/a\n4:memory:/job\n0::/\n"
    files(tmp_path, proc__self__cgroup=groups)
    for group, limit in (("memory/job", "8000"), ("memory", str(2**63 - 4096))):
        write_group(tmp_path, group)
        folder = tmp_path / "sys/fs/cgroup" / group
        (folder / "memory.limit_in_bytes").write_text(limit)
        (folder / "memory.usage_in_bytes").write_text("5000")
        (folder / "memory.stat").write_text("total_inactive_file 1000\ninactive_file 1\n")
    assert bounds(tmp_path) == [4000]


def test_no_control_groups(tmp_path: Path) -> None:
    assert bounds(tmp_path) == []


def test_the_environment_says_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "12GB")
    assert free_memory("cuda").bytes == 12 * GB
    monkeypatch.setenv(MEMORY_VARIABLE, "plenty")
    with pytest.raises(UsageError, match="NATURELM_MEMORY is 'plenty'"):
        free_memory()


def load_under_a_limit(room: int, answer: Any) -> None:
    """Load the embedded model where the address space has so many bytes left; say what came."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        NatureLM.from_pretrained("naturelm-tiny", dtype="auto")
        answer.send("loaded")
    except UsageError as error:
        answer.send(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_a_small_ulimit_is_seen_before_it_is_met() -> None:
    embedded()  # its modules are imported before
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=load_under_a_limit, args=(150_000_000, theirs))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert "of the address space (ulimit -v) are free: no precision fits" in ours.recv()


# -- commands and the engine ----------------------------------------------------------------


def test_commands_take_what_fits_and_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need = need_of(embedded(), precisions(embedded(), CPU)[2], "cpu")
    monkeypatch.setenv(MEMORY_VARIABLE, str(need.total + 1000))
    command = ["infer", "--audio-path", CLIP, "--query", "What is it?"]
    done = naturelm(*command, "--output-path", str(tmp_path / "answers.jsonl"))
    assert done.exit_code == 0, done.output
    assert done.output.count("is loaded in int8") == 1
    record = json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    assert "int8" in json.dumps(record)
    refused = naturelm(*command, "--dtype", "float32")
    assert refused.exit_code != 0
    assert "in float32 needs" in refused.output


def test_check_shows_what_fits_and_how_long_a_window_takes(
    monkeypatch: pytest.MonkeyPatch, nano_folder: Path
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    checkpoint = nano_folder / "checkpoint"
    small = outline_of(NatureLM, open_checkpoint(str(checkpoint)))[0]
    need = need_of(small, precisions(small, CPU)[1], "cpu")
    monkeypatch.setenv(MEMORY_VARIABLE, str(need.total + 1000))
    shown = naturelm("models", "--check", checkpoint)
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.output.splitlines()]
    fits = {line[0]: "yes" in line for line in lines if line and line[0] in fit.COSTS}
    assert fits == {"bfloat16": True, "int8": True, "int4": True}
    plain = json.loads(naturelm("models", "--check", checkpoint, "--json").output)
    assert [one["fits"] for one in plain["precisions"]] == [False, True, True, True]
    assert [one["seconds_per_window"] is None for one in plain["precisions"]] == [
        *(True, False, False, False)
    ]
    assert all(0 < one["seconds_per_window"] < 30 for one in plain["precisions"][1:])
    assert plain["free_bytes"] == need.total + 1000
    unknown = naturelm("models", "--check", "no-such-model")
    assert unknown.exit_code != 0
    assert "no model 'no-such-model'" in unknown.output


def test_a_window_takes_what_its_layers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts products: one tick each."""
    ticks = [0]

    class Counted(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            ticks[0] += func is torch.nn.functional.linear
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(ticks[0]))
    config = embedded().model.config
    precision = Precision(torch.float32, torch.float32)
    with Counted():
        found = speed.measure(config, precision, "cpu")
    layers = config.text_config.num_hidden_layers
    assert found.prompt == 7 * layers + 1
    assert 7 * layers + 1 < found.step < 7 * (layers + 1) + 1  # of a head as large as its weights
    assert found.of(10) == found.encoding + found.prompt + 10 * found.step
    assert found.of(10, 4.0) == found.encoding + found.prompt + 2.5 * found.step


def test_batches_and_copies_take_what_is_left(
    monkeypatch: pytest.MonkeyPatch, nano: NatureLM
) -> None:
    whole = Engine(nano)._budget.tokens
    with fold_if_single_alpha(nano, [1.0]):
        assert nano.folded is not None
    monkeypatch.setenv(MEMORY_VARIABLE, "4MB")
    assert Engine(nano)._budget.tokens < whole
    monkeypatch.setenv(MEMORY_VARIABLE, "50kB")
    with fold_if_single_alpha(nano, [1.0]):
        assert nano.folded is None


# -- layers in RAM --------------------------------------------------------------------------

PROMPT = "<Audio><AudioHere></Audio> What is it?"
ALPHAS = (0.0, 0.3, 1.0)


def loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, layers: int | None, **options: Any
) -> NatureLM:
    """The small reference checkpoint with so many layers on the device, here the processor."""
    plain = load.choose

    def chosen(*given: Any) -> Placement:
        return Placement(plain(*given).precision, layers)

    monkeypatch.setattr(load, "choose", chosen)
    return NatureLM.from_pretrained(folder / "checkpoint", **options)


def answers(model: NatureLM, waves: dict[str, Tensor]) -> list[tuple[str | None, float | None]]:
    """Of the engine, at several α at once and with beams."""
    engine = Engine(model, GenerationOptions(max_new_tokens=6, num_beams=2))
    requests = [
        Request((name, alpha), PROMPT, (name,), alpha) for name in waves for alpha in ALPHAS
    ]
    found = {one.key: one for one in engine.run(requests, waves.__getitem__)}
    return [(found[one.key].text, found[one.key].log_probability) for one in requests]


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=["float32", "bf16", "int8"]
)
@pytest.mark.parametrize("layers", [0, 1])
def test_answers_are_the_same(
    nano_folder: Path,
    nano_waveforms: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    layers: int,
    options: dict[str, Any],
) -> None:
    whole = loaded(nano_folder, monkeypatch, None, **options)
    parted = loaded(nano_folder, monkeypatch, layers, **options)
    assert whole.offloaded == 0
    assert parted.offloaded == len(layers_of(parted.language_model)) - layers > 0
    assert answers(parted, nano_waveforms) == answers(whole, nano_waveforms)
    with fold_if_single_alpha(parted, [1.0]):
        assert parted.folded is None
    scores = [
        one.score_labels([PROMPT], [[nano_waveforms["howl"]]], ["Wren", "Owl"], alpha=0.5)
        for one in (whole, parted)
    ]
    assert scores[0] == scores[1]


def test_a_layer_runs_with_copies_and_has_its_own_tensors_again() -> None:
    layer = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    own = dict(layer.named_parameters())
    assert copy_to_run([layer], torch.device("cpu")) == 1
    seen: list[int] = []
    layer[0].register_forward_hook(lambda *_: seen.append(id(layer[0].weight)))
    with torch.inference_mode():
        layer(torch.ones(2, 3))
    assert len(seen) == 1
    assert seen[0] != id(own["0.weight"])
    assert all(one is own[name] for name, one in layer.named_parameters())
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 5))
    assert all(one is own[name] for name, one in layer.named_parameters())
