"""The exported folder inside vLLM: answers and log-probabilities are those of our engine.

Run by `make vllm`, in an environment where vLLM is installed and this package beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import BuildModel
from torch import Tensor
from vllm_answers import EXACT, NEW_TOKENS, QUESTION, SAME, ours, talk

from NatureLM.generation.engine import Answer
from NatureLM.models import NatureLM
from NatureLM.prompts import AUDIO_TAG
from NatureLM.vllm.export import export_for_vllm

pytestmark = pytest.mark.vllm

ALPHAS = (0.0, 0.4, 1.0)
HEAD_64 = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}


@dataclass
class Inside:
    """A model in our engine, and the folder made of it in vLLM's.

    alphas: those that the folder can be asked at
    """

    model: NatureLM
    folder: Path
    llm: Any
    alphas: tuple[float, ...]

    def lora(self, alpha: float) -> Any:
        """What vLLM is told to answer at an α."""
        from vllm.lora.request import LoRARequest

        name = f"alpha-{alpha:g}"
        path = self.folder / "adapters" / name
        if not path.is_dir():
            return None
        return LoRARequest(name, 1 + self.alphas.index(alpha), str(path))

    def ask(self, talks: Sequence[Any], alphas: Sequence[float]) -> list[Any]:
        """vLLM's answers to conversations."""
        from vllm import SamplingParams

        told = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=3)
        loras = [self.lora(one) for one in alphas]
        made: list[Any] = self.llm.chat(list(talks), told, lora_request=loras, use_tqdm=False)
        return made


@pytest.fixture(scope="module", params=["tiny", "random", "tiny folded"])
def inside(
    request: pytest.FixtureRequest,
    build_model: BuildModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Inside]:
    """The embedded model, one of other sizes with random weights, and the embedded one folded."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("exported") / request.param.replace(" ", "-")
    alphas: tuple[float, ...] = ALPHAS
    if request.param == "random":
        build_model(llama=HEAD_64, use_rslora=True).save_pretrained(folder.parent / "source")
        model = NatureLM.from_pretrained(folder.parent / "source")
        export_for_vllm(folder.parent / "source", folder, alphas=[0.4, 1.0])
    else:
        model = NatureLM.from_pretrained("naturelm-tiny")
        folds = request.param == "tiny folded"
        alphas = (0.4,) if folds else ALPHAS
        export_for_vllm(
            "naturelm-tiny",
            folder,
            alphas=[0.4] if folds else [0.4, 1.0],
            fold=folds,
            dtype=torch.float32,  # its weights lie in half precision, which a fold is rounded to
        )
    llm = start(folder, lora=len(alphas) > 1)
    yield Inside(model, folder, llm, alphas)
    stop(llm)


def start(folder: Path, *, lora: bool) -> Any:
    """vLLM with a folder, in this process and in float32; one slot for adapters stays empty."""
    from vllm import LLM

    more = {"enable_lora": True, "max_lora_rank": 32, "max_loras": 3} if lora else {}
    return LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        block_size=32,
        limit_mm_per_prompt={"audio": 4},
        **more,
    )


def stop(llm: Any) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


def compare(found: Any, expected: Answer) -> None:
    """Text, ids and the log-probabilities of the first step."""
    output = found.outputs[0]
    assert tuple(output.token_ids) == expected.ids
    # Where an answer ends within a character, vLLM leaves the broken one out.
    assert output.text.strip() == (expected.text or "").rstrip("\N{REPLACEMENT CHARACTER}").strip()
    first = output.logprobs[0]
    for token, value in expected.log_probabilities[0].likeliest:
        assert first[token].logprob == pytest.approx(value, abs=EXACT)


def test_answers_are_those_of_our_engine(inside: Inside, nano_waveforms: dict[str, Tensor]) -> None:
    """One clip and two, every α, all in one batch."""
    one, two, three = nano_waveforms.values()
    rows = [([one], QUESTION), ([two], QUESTION), ([three, one], SAME), ([], "What is a wren?")]
    rows = rows * len(inside.alphas)
    alphas = [alpha for alpha in inside.alphas for _ in range(4)]
    clips, questions = zip(*rows, strict=True)
    found = inside.ask([talk(*row) for row in rows], alphas)
    expected = ours(inside.model, clips, questions, alphas)
    assert len({answer.text for answer in expected}) > len(inside.alphas)
    for mine, theirs in zip(expected, found, strict=True):
        compare(theirs, mine)


def test_positions_are_those_of_our_engine(
    inside: Inside, nano_waveforms: dict[str, Tensor]
) -> None:
    from NatureLM.prompts import prompt_parts

    one, two, _ = nano_waveforms.values()
    (found,) = inside.ask([talk([one, two], SAME)], [inside.alphas[0]])
    prompt = inside.model.config.prompt_template.replace("{}", f"{AUDIO_TAG} {AUDIO_TAG} {SAME}")
    first, *rest = prompt_parts(prompt, inside.model.tokenizer)
    token, ids = len(inside.model.tokenizer), list(first)
    for part in rest:
        ids += [token] * inside.model.config.audio_positions() + part
    assert found.prompt_token_ids == ids


def test_prefixes_with_sound_are_kept(inside: Inside, nano_waveforms: dict[str, Tensor]) -> None:
    """A second question about a clip reads its blocks; another clip of the same length does not."""
    one, other_clip, _ = nano_waveforms.values()
    two = 0.5 * other_clip  # nothing has asked about it yet
    long = "Listen well, then say it. " * 8
    alpha = inside.alphas[-1]
    inside.ask([talk([one], long)], [alpha])
    (again,) = inside.ask([talk([one], f"{long}Why?")], [alpha])
    (other,) = inside.ask([talk([two], f"{long}Why?")], [alpha])
    assert again.num_cached_tokens >= 32
    assert other.num_cached_tokens == 0
    expected = ours(inside.model, [[one], [two]], [f"{long}Why?"] * 2, [alpha] * 2)
    compare(again, expected[0])
    compare(other, expected[1])


def test_a_prompt_that_spells_the_token_out_ends_nothing(
    inside: Inside, nano_waveforms: dict[str, Tensor]
) -> None:
    from vllm import SamplingParams

    made = inside.llm.generate(["<AudioHere> what?"], SamplingParams(max_tokens=2), use_tqdm=False)
    assert made[0].finished
    one, *_ = nano_waveforms.values()
    with pytest.raises(Exception, match="2 places for clips, and there are 1"):
        inside.ask([talk([one], f"{AUDIO_TAG} {AUDIO_TAG} {SAME}")], [inside.alphas[0]])
    (found,) = inside.ask([talk([one], QUESTION)], [inside.alphas[0]])
    compare(found, ours(inside.model, [[one]], [QUESTION], inside.alphas[:1])[0])
