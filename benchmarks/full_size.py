"""What is measured with the full architecture and random weights on a card; run by `gpu_check.py`.

BEATs, Q-Former and a language model of 8 B parameters in bfloat16, LoRA of rank 32. `FullSize`
holds the model, so that all parts of one process share it; a small model on the processor stands in
for it in smoke mode, where no figure means anything. A part is a function that returns figures for
JSON; `functions` names them.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from baseline import Baseline
from measure import ASSETS
from model import (
    QUERIES,
    BenchmarkModel,
    build,
    config_of,
    prompt,
    waves,
    with_random_weights,
)
from torch import Tensor

from NatureLM.config.schema import Quantization
from NatureLM.generation.cuda_graphs import make_graph_runner
from NatureLM.generation.decoding import DecodingSession
from NatureLM.generation.engine import Engine, GenerationOptions, Request, fold_if_single_alpha
from NatureLM.models.cuda_layers import use_cuda_layers
from NatureLM.models.quantized import quantize_layers
from NatureLM.training.samples import BatchLayout, BatchSource, Sample

LLAMA_8B = {
    "vocab_size": 128257,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
}
TOKENS = 16
PROMPT = 128  # positions of the prompts that prefill is measured with
WARM_STEPS = 8  # more than there are before a step is captured and compared
STEPS = 16
ALPHAS = tuple(step / 10 for step in range(11))


def build_full(device: str) -> BenchmarkModel:
    """The architecture of the published model, random weights, bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = with_random_weights(config_of({"text_config": LLAMA_8B}))
    finally:
        torch.set_default_dtype(before)
    use_cuda_layers(model.language_model)
    return model


class FullSize:
    """The model that all parts share, and how large each part is.

    smoke: a small model on the processor, and as little work as tries the program
    recordings: folder of recordings for `files`; the samples of `assets/` if None
    """

    def __init__(self, smoke: bool = False, recordings: Path | None = None) -> None:
        self.smoke, self.recordings = smoke, recordings or ASSETS

    @cached_property
    def model(self) -> BenchmarkModel:
        """Built when the first part asks for it."""
        return build(small=True) if self.smoke else build_full("cuda")

    @property
    def language_model(self) -> Any:
        return self.model.language_model

    @cached_property
    def weights(self) -> int:
        """Numbers that every position of a pass is multiplied with."""
        named = self.language_model.named_parameters()
        total = sum(p.numel() for name, p in named if ".lora_" not in name)
        return total - self.model.llama_embed_tokens.weight.numel()

    @property
    def bytes_of_a_step(self) -> int:
        """Of the weights that a step reads, whatever the number of rows."""
        named = self.language_model.named_parameters()
        total = sum(p.nbytes for name, p in named if ".lora_" not in name)
        return total - self.model.llama_embed_tokens.weight.nbytes

    def quantize(self, kind: Quantization) -> None:
        """Begin anew, with weights of so many bits."""
        self.__dict__.pop("model", None)
        quantize_layers(self.language_model, kind)
        self.model.config.quantized = kind

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """What the card can do at best: operations and bytes a second."""
        return measure_ceilings(self.smoke)

    def pick(self, full: Sequence[int], smoke: Sequence[int]) -> Sequence[int]:
        """Sizes, or those of smoke mode."""
        return smoke if self.smoke else full


def wait() -> None:
    """Until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(way: Callable[[], Any], rounds: int = 1) -> float:
    """Seconds of the clock until the device is done; the median of some rounds."""
    taken = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        way()
        wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure_ceilings(smoke: bool) -> dict[str, float]:
    """Operations of a large bfloat16 product, and bytes read and written by a large copy."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, length = (256, 1 << 20) if smoke else (8192, 1 << 30)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(length, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    a @ b, target.copy_(source)
    return {
        "operations": 2 * side**3 / seconds(lambda: a @ b, 10),
        "bytes": 4 * length / seconds(lambda: target.copy_(source), 10),
    }


# -- parts ------------------------------------------------------------------------------------


def ceilings(full: FullSize) -> dict[str, Any]:
    """The card itself."""
    return dict(full.ceilings)


@torch.inference_mode()
def encoder(full: FullSize) -> dict[str, Any]:
    """Windows a second of the audio encoder alone, and of its spectrograms."""
    model, found = full.model, {}
    for batch in full.pick((1, 16, 64), (1, 2)):
        wav_BS = torch.stack(waves(batch)).to(model.device)
        model.encode_audio(wav_BS)
        fbank = seconds(lambda w=wav_BS: model._fbanks(w, [0]), 5)
        whole = seconds(lambda w=wav_BS: model.encode_audio(w), 5)
        found[str(batch)] = {"windows_per_second": batch / whole, "fbank_share": fbank / whole}
    return found


def prefill_and_steps(full: FullSize) -> dict[str, Any]:
    """Prefill and decoding steps as shares of what the card can do, α folded into the weights."""
    with fold_if_single_alpha(full.model, [1.0]):
        return {
            str(rows): shares(full, rows, [1.0] * rows)
            for rows in full.pick((1, 16, 64, 128, 256), (2, 4))
        }


def adapter_steps(full: FullSize) -> dict[str, Any]:
    """The same with an α of its own for each row."""
    return {
        str(rows): shares(full, rows, [ALPHAS[row % len(ALPHAS)] for row in range(rows)])
        for rows in full.pick((16, 128), (4,))
    }


@torch.inference_mode()
def shares(full: FullSize, rows: int, alphas: list[float]) -> dict[str, float]:
    """Seconds of prefill and of a step, plain and captured, and their shares."""
    embeds, read = some_prompts(full, rows), full.bytes_of_a_step
    graphs = make_graph_runner(full.language_model)

    def begin(**how: Any) -> DecodingSession:
        return DecodingSession(
            full.language_model, embeds, alphas, new_tokens=WARM_STEPS + STEPS, **how
        )

    begin()
    prefill = seconds(begin, 3)
    plain = step_seconds(full, begin())
    captured = step_seconds(full, begin(graphs=graphs))
    operations, rate = 2 * full.weights * rows * PROMPT, full.ceilings
    return {
        "prefill_seconds": prefill,
        "prefill_share": operations / prefill / rate["operations"],
        "step_seconds": plain,
        "step_share": read / plain / rate["bytes"],
        "captured_step_seconds": captured,
        "captured_step_share": read / captured / rate["bytes"],
    }


def some_prompts(full: FullSize, rows: int) -> list[Tensor]:
    """Random embeddings (PROMPT, width) of prompts."""
    like = full.model.llama_embed_tokens.weight
    return list(torch.randn(rows, PROMPT, like.shape[1], device=like.device, dtype=like.dtype))


def step_seconds(full: FullSize, session: DecodingSession) -> float:
    """Seconds of a decoding step, after some in which a captured one is recorded."""
    tokens = torch.zeros(session.rows, dtype=torch.long, device=full.model.device)
    for _ in range(WARM_STEPS):
        session.step(tokens)
    return seconds(lambda: [session.step(tokens) for _ in range(STEPS)]) / STEPS


def quantized(full: FullSize, kind: Quantization) -> dict[str, Any]:
    """Memory, prefill and steps with the language model's weights as integers, and the engine.

    The adapter acts beside them, as it is never folded into them. Begins with a model of its own.
    """
    before = full.weights
    took = seconds(lambda: full.quantize(kind))
    found: dict[str, Any] = {
        "gigabytes": sum(p.nbytes for p in full.language_model.parameters()) / 1e9,
        "quantising_seconds": took,
        "bytes_of_a_weight": full.bytes_of_a_step / before,
    }
    for rows in full.pick((1, 4, 16, 64, 256), (2,)):
        found[str(rows)] = shares(full, rows, [1.0] * rows)
    (windows,) = full.pick((64,), (1,))
    found["engine_windows_per_second"] = windows / engine_seconds(full, windows, [1.0])
    return found


def throughput(full: FullSize) -> dict[str, Any]:
    """Windows a second of the loop over single windows, of batches, and of the engine."""
    (loop,), (batched,), (windows,) = (
        full.pick((8,), (1,)),
        full.pick((32,), (2,)),
        full.pick((512,), (2,)),
    )
    plain_seconds(full, 1, 1)
    rates = {
        "loop": loop / plain_seconds(full, loop, 1),
        "batch 16": batched / plain_seconds(full, batched, 16),
        "uncaptured": windows / engine_seconds(full, windows, [1.0], capture=False),
        "engine": windows / engine_seconds(full, windows, [1.0]),
    }
    return {"windows_per_second": rates, "engine_over_loop": rates["engine"] / rates["loop"]}


def plain_seconds(full: FullSize, count: int, batch: int) -> float:
    """Seconds of the plain path over some windows, so many at a time."""
    way = Baseline(full.model, GenerationOptions(max_new_tokens=TOKENS, num_beams=2))
    clips, text = waves(count), prompt(full.model, QUERIES[0])

    def run() -> None:
        for first in range(0, count, batch):
            part = [[wave] for wave in clips[first : first + batch]]
            way.answer([text] * len(part), part)

    return seconds(run)


def engine_seconds(
    full: FullSize,
    windows: int,
    alphas: Sequence[float],
    load: Callable[[str], Any] | None = None,
    **how: Any,
) -> float:
    """Seconds of the engine for windows at some α, after a run of as many other windows.

    In that one it has recorded its steps, as it has in all but the first seconds of a long run.
    """
    options = GenerationOptions(max_new_tokens=TOKENS, num_beams=2)
    engine = Engine(full.model, options, eos_ids=full.model.eos_ids, **how)
    text, clips = prompt(full.model, QUERIES[0]), waves(min(windows, 64))

    def noise(name: str) -> Tensor:
        number = int(name)
        return clips[number % len(clips)] * (1 + number // len(clips)) / 100

    def run(names: Sequence[str], load: Callable[[str], Any]) -> None:
        requests = [
            Request((name, alpha), text, (name,), alpha) for name in names for alpha in alphas
        ]
        answers = list(engine.run(requests, load))
        wrong = [one for one in answers if one.error is not None]
        if wrong or len(answers) != len(requests):
            raise RuntimeError(f"{len(answers)} of {len(requests)} answers, {wrong[:1]}")

    with fold_if_single_alpha(full.model, list(alphas)):
        run([str(windows + number) for number in range(windows)], noise)
        return seconds(lambda: run([str(number) for number in range(windows)], load or noise))


def alphas(full: FullSize) -> dict[str, Any]:
    """Seconds for some windows at 1 to 11 values of α."""
    found: dict[str, Any] = {}
    for windows in full.pick((1, 8, 32), (1,)):
        taken = {
            str(count): engine_seconds(full, windows, ALPHAS[-count:])
            for count in full.pick((1, 2, 4, 8, 11), (1, 2))
        }
        found[str(windows)] = taken
    return found


def files(full: FullSize) -> dict[str, Any]:
    """Whether the card waits for audio: windows from files on disk, and the same from memory."""
    from NatureLM.audio.windows import read_clip

    (count,) = full.pick((200,), (3,))
    with copies(full.recordings, count) as paths:
        length = full.model.config.window_seconds
        rate = full.model.config.sample_rate

        def read(name: str) -> Any:
            return read_clip(paths[int(name)], sample_rate=rate, duration=length)

        ready = {str(number): torch.as_tensor(read(str(number))) for number in range(count)}
        memory = engine_seconds(full, count, [1.0], ready.__getitem__)
        return {
            "files": count,
            "from_memory_seconds": memory,
            "from_files_seconds": {
                str(workers): engine_seconds(full, count, [1.0], read, workers=workers)
                for workers in (2, 8)
            },
            "reading_alone_seconds": seconds(lambda: [read(str(n)) for n in range(count)]),
        }


def training(full: FullSize) -> dict[str, Any]:
    """A step of stage 2: LoRA, Q-Former and projection learn. Last: it changes the model."""
    from NatureLM.config.schema import Config
    from NatureLM.training.build import freeze
    from NatureLM.training.objectives import AudioText
    from NatureLM.training.train import Trainer

    found: dict[str, Any] = {}
    model = full.model
    for batch in full.pick((8, 32), (2,)):
        with tempfile.TemporaryDirectory() as folder:
            run = {
                "output_dir": folder,
                "batch_size_train": batch,
                "amp": not full.smoke,
                "max_steps": 8,
                "device": model.device.type,
            }
            config = Config.model_validate({"run": run, "model": {"freeze_beats": True}})
            freeze(model, config.model)
            loader = NoiseBatches(full, batch)
            trainer = Trainer(config, objective=AudioText(model), loader=loader)
            updates = [lambda b=b, t=trainer, n=n: t._update(n, b) for n, b in loader.numbered(5)]
            updates[0]()
            if model.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = statistics.median(seconds(update) for update in updates[1:])
        found[str(batch)] = {
            "seconds": taken,
            "samples_per_second": batch / taken,
            "positions_per_second": batch * loader.positions / taken,
            "gigabytes": peak_gigabytes(),
        }
    return found


def peak_gigabytes() -> float:
    """The most memory that tensors have taken on the card."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


class NoiseBatches(BatchSource):
    """Samples of noise, one question and a short answer each."""

    def __init__(self, full: FullSize, batch: int) -> None:
        self.layout = BatchLayout(batch)
        text, answer = prompt(full.model, QUERIES[0]), "Eurasian Wren"
        self._samples = [
            Sample(str(number), text, answer, (wave.numpy(),))
            for number, wave in enumerate(waves(batch))
        ]
        read = full.model.tokenizer
        tokens = len(read(text, add_special_tokens=False).input_ids)
        sound = full.model.config.audio_positions()
        self.positions = sound + tokens + len(read(answer).input_ids)
        """Of a row, about."""

    @property
    def epoch_steps(self) -> int:
        return 1

    def steps(self, first: int, last: int) -> Iterator[list[list[Any]]]:
        for _ in range(first, last):
            yield [list(self._samples)]

    def numbered(self, count: int) -> Iterator[tuple[int, list[list[Any]]]]:
        """The first steps with their numbers."""
        yield from enumerate(self.steps(0, count))


def embedded(full: FullSize) -> dict[str, Any]:
    """Windows a second of the embedded model, a question each, answered freely."""
    from NatureLM.inference.loading import load_model

    (windows,) = full.pick((2048,), (2,))
    small = FullSize(full.smoke)
    small.__dict__["model"] = load_model("naturelm-tiny", device=full.model.device.type)
    return {"windows_per_second": windows / engine_seconds(small, windows, [1.0])}


@contextmanager
def copies(folder: Path, count: int) -> Iterator[list[Path]]:
    """So many recordings; those of the folder again and again, each a file of its own."""
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".flac", ".ogg", ".mp3"))
    with tempfile.TemporaryDirectory() as there:
        paths = []
        for number in range(count):
            source = found[number % len(found)]
            paths.append(Path(shutil.copy(source, f"{there}/{number}{source.suffix}")))
        yield paths


def profile(full: FullSize) -> dict[str, Any]:
    """Kernels of a prefill and of a step, and functions of a run of the engine, dearest first."""
    (rows,), (windows,) = full.pick((32,), (2,)), full.pick((64,), (2,))
    mixed = [ALPHAS[row % len(ALPHAS)] for row in range(rows)]
    found: dict[str, Any] = {}
    with fold_if_single_alpha(full.model, [1.0]):
        found |= kernels_of(full, "folded", [1.0] * rows)
    found |= kernels_of(full, "adapters", mixed)
    found["engine"] = functions_of(lambda: engine_seconds(full, windows, [1.0]))
    with torch.inference_mode(), fold_if_single_alpha(full.model, [1.0]):
        graphs = make_graph_runner(full.language_model)
        session = DecodingSession(
            full.language_model, some_prompts(full, 1), [1.0], new_tokens=64, graphs=graphs
        )
        step_seconds(full, session)
        tokens = torch.zeros(1, dtype=torch.long, device=full.model.device)
        found["captured step"] = kernel_table(lambda: session.step(tokens))
        found["host of captured steps"] = functions_of(
            lambda: [session.step(tokens) for _ in range(STEPS)]
        )
    return found


def functions_of(way: Callable[[], Any]) -> list[str]:
    """The dearest Python functions, as cProfile prints them."""
    profiler = cProfile.Profile()
    profiler.runcall(way)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(30)
    return text.getvalue().splitlines()[4:45]


@torch.inference_mode()
def kernels_of(full: FullSize, name: str, alphas: list[float]) -> dict[str, Any]:
    """Kernels of a prefill, and of a step after it."""
    embeds = some_prompts(full, len(alphas))
    made: list[DecodingSession] = []

    def begin() -> None:
        made.append(DecodingSession(full.language_model, embeds, alphas, new_tokens=STEPS))

    begin()
    tokens = torch.zeros(len(alphas), dtype=torch.long, device=full.model.device)
    made[-1].step(tokens)
    return {
        f"{name} prefill": kernel_table(begin),
        f"{name} step": kernel_table(lambda: made[-1].step(tokens)),
    }


def kernel_table(way: Callable[[], Any], most: int = 24) -> list[str]:
    """The dearest kernels: microseconds in all, calls, name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        way()
        wait()
    events = [
        (e.self_device_time_total, e.count, e.key)
        for e in recorded.key_averages()
        if e.self_device_time_total and str(e.device_type).endswith("CUDA")
    ]
    events.sort(reverse=True)
    whole = sum(time for time, _, _ in events), sum(count for _, count, _ in events)
    lines = [f"{whole[0]:10.0f} µs {whole[1]:6d} all kernels"]
    return lines + [f"{time:10.0f} µs {count:6d} {key[:100]}" for time, count, key in events[:most]]


functions: dict[str, Callable[[FullSize], dict[str, Any]]] = {
    "ceilings": ceilings,
    "steps": prefill_and_steps,
    "adapter steps": adapter_steps,
    "throughput": throughput,
    "alphas": alphas,
    "encoder": encoder,
    "files": files,
    "embedded": embedded,
    "profile": profile,
    "training": training,
    "int8": lambda full: quantized(full, "int8"),
    "int4": lambda full: quantized(full, "int4"),
}
"""The parts by their names."""
