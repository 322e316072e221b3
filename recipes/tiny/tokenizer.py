"""The embedded model's tokenizer: byte-level BPE with Llama 3's special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedTokenizerFast

from recipes.tiny.text.generate import samples
from recipes.tiny.text.species import SOURCES

BEGIN, END, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIAL_TOKENS = (
    BEGIN,
    END,
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_TURN,
    "<|eom_id|>",
    "[PAD]",
)
# Llama 3's rule for cutting text into words: contractions, words, digits, signs, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAME_REPEATS = 40  # how often each name stands in the training text, so that names stay short


def train_tokenizer(
    vocabulary_size: int = 2048, texts: int = 20000, seed: int = 0
) -> PreTrainedTokenizerFast:
    """Train on generated instructions; the same seed gives the same tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(texts, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token="[PAD]",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _texts(count: int, seed: int) -> Iterator[str]:
    for _, prompt, answer in islice(samples(seed), count):
        yield prompt
        yield answer
    for source in SOURCES:
        for text in (source.name, f" {source.name}", source.scientific, f" {source.scientific}"):
            yield from (text,) * _NAME_REPEATS
