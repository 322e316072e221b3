"""The straightforward way, which the reference was seen to work: what the engine is compared with.

    python benchmarks/baseline.py [--small] [--threads 2]

Windows one by one, each question and each α encoding its clips again (sweeps in batches of four),
one full pass through the model for every label. It is the package's own plain path - the same
weights, precision and threads - and decodes with the package's own decoding, which shares the
prompt between beams and lets finished rows leave. Should that be slower than `generate` of
transformers by more than a tenth, `quicker_decoding` makes the baseline use the latter; run as a
program, this file prints both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from measure import options_for, quickest, use_threads
from model import QUERIES, build, prompt, waves
from torch import Tensor

from NatureLM.generation.decoding import Decoder, Prompt
from NatureLM.generation.engine import GenerationOptions
from NatureLM.generation.prefill import left_pad
from NatureLM.merging.lora import active_alpha

BATCH = 4
SLOWER = 1.1


class Baseline:
    """Asks a model without reusing anything."""

    def __init__(
        self, model: Any, options: GenerationOptions | None = None, own_decoding: bool = True
    ) -> None:
        self.model = model
        self.options = options or GenerationOptions()
        self.own_decoding = own_decoding

    @torch.inference_mode()
    def answer(
        self, prompts: Sequence[str], clips: Sequence[Sequence[Tensor]], alpha: float = 1.0
    ) -> list[str]:
        """One batch of prompts, each with clips of its own, which are encoded for it."""
        model = self.model
        embeds = model.input_embeddings(prompts, [[wav.clone() for wav in row] for row in clips])
        decode = own_decoding if self.own_decoding else transformers_decoding
        ids = decode(model, embeds, alpha, self.options)
        return [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    @torch.inference_mode()
    def label_score(self, text: str, wave: Tensor, label: str, alpha: float = 1.0) -> float:
        """Log-likelihood of a label and of the end after it, in one pass over all of it."""
        model = self.model
        (embeds,) = model.input_embeddings([text], [[wave.clone()]])
        ids = torch.tensor(model.tokenizer(label, add_special_tokens=False).input_ids)
        row_LD = torch.cat([embeds, model.llama_embed_tokens(ids.to(embeds.device))])
        with active_alpha(alpha):
            output = model.language_model(
                inputs_embeds=row_LD[None], use_cache=False, logits_to_keep=len(ids) + 1
            )
        logs_LV = output.logits[0].float().log_softmax(-1)
        said = logs_LV[torch.arange(len(ids)), ids].sum()
        return float(said + logs_LV[-1, model.eos_ids].logsumexp(-1))


def own_decoding(
    model: Any, embeds: Sequence[Tensor], alpha: float, options: GenerationOptions
) -> list[list[int]]:
    """The package's decoding of one batch."""
    decoder = Decoder(model.language_model, options, model.eos_ids)
    prompts = [Prompt(one_LD, alpha, number) for number, one_LD in enumerate(embeds)]
    decoder.add(prompts)
    found: dict[Prompt, list[int]] = {}
    while decoder:
        found |= {state.prompt: state.ids for state in decoder.advance()}
    return [found[prompt] for prompt in prompts]


def transformers_decoding(
    model: Any, embeds: Sequence[Tensor], alpha: float, options: GenerationOptions
) -> list[list[int]]:
    """The same batch through `generate` of transformers, as many new tokens for every row."""
    embeds_RLD, mask_RL, _ = left_pad(embeds)
    with active_alpha(alpha):
        ids = model.language_model.generate(
            inputs_embeds=embeds_RLD,
            attention_mask=mask_RL,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            do_sample=False,
            length_penalty=options.length_penalty,
            eos_token_id=None,
            pad_token_id=model.tokenizer.pad_token_id,
        )
    rows: list[list[int]] = ids.tolist()
    return rows


def compare_decoding(model: Any, rounds: int = 3) -> list[dict[str, Any]]:
    """Processor seconds of both on the same prompt embeddings, as the table's rows use them."""
    clips = waves(BATCH)
    found = []
    for rows, beams in ((1, 1), (1, 2), (BATCH, 2)):
        options = GenerationOptions(max_new_tokens=16, num_beams=beams)
        with torch.inference_mode():
            texts = [prompt(model, QUERIES[0])] * rows
            embeds = model.input_embeddings(texts, [[clip] for clip in clips[:rows]])
            both = {
                decode: quickest(lambda d=decode, o=options, e=embeds: d(model, e, 1.0, o), rounds)
                for decode in (own_decoding, transformers_decoding)
            }
            equal = own_decoding(model, embeds, 1.0, options) == transformers_decoding(
                model, embeds, 1.0, options
            )
        own, other = both[own_decoding], both[transformers_decoding]
        found.append(
            {
                "rows": rows,
                "beams": beams,
                "own": own,
                "transformers": other,
                "ratio": own / other,
                "equal": equal,
            }
        )
    return found


def quicker_decoding(compared: Sequence[dict[str, Any]]) -> bool:
    """Whether the package's own decoding is nowhere slower by more than a tenth."""
    return all(one["ratio"] <= SLOWER for one in compared)


def show(compared: Sequence[dict[str, Any]]) -> None:
    """Print the comparison."""
    print(f"{'prompts':>8s} {'beams':>6s} {'own s':>8s} {'transformers s':>15s} {'ratio':>6s}")
    for one in compared:
        equal = "same tokens" if one["equal"] else "OTHER TOKENS"
        print(
            f"{one['rows']:8d} {one['beams']:6d} {one['own']:8.3f} {one['transformers']:15.3f} "
            f"{one['ratio']:6.2f}  {equal}"
        )


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__, "small", "threads", rounds=3)
    options = parser.parse_args()
    use_threads(options.threads)
    compared = compare_decoding(build(options.small), options.rounds)
    show(compared)
    used = "its own decoding" if quicker_decoding(compared) else "that of transformers"
    print(f"Processor seconds, 16 new tokens. The baseline uses {used}.")


if __name__ == "__main__":
    main()
