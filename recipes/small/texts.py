"""Text for replay: everyday instructions without sound, and the base model's own answers to them.

What is replayed keeps the language model as it was, so the answers are its own (greedy), right or
not. None of the instructions asks for capitals, JSON, letters of options, another language or
labelled examples, which the study asks for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from recipes.tiny.data import Row

if TYPE_CHECKING:
    from NatureLM.models import NatureLM


def _listed(text: str) -> list[str]:
    return text.split(",")


_THINGS = _listed(
    "a river,the moon,bread,a bicycle,an old tree,rain,a lighthouse,the sea,a violin,a clock,"
    "winter,a market,a train,honey,a garden,a mountain,sleep,a bridge,a letter,glass,the sun,"
    "a horse,an owl,a whale,a spider,salt,a library,a candle,paper,a forest,wind,a boat"
)
_KINDS = _listed(
    "fruit,vegetables,birds,fish,insects,tools,musical instruments,colours,trees,flowers,"
    "countries,cities,rivers,sports,drinks,kinds of weather,pieces of furniture,metals,planets"
)
_QUALITIES = _listed(
    "big,cold,happy,fast,quiet,bright,heavy,old,early,soft,strong,empty,dry,near,rich,brave,"
    "clean,deep,easy,wide"
)
_WORDS = _listed(
    "apple,stone,window,summer,pencil,cloud,table,school,yellow,planet,music,engine,kitchen,"
    "harbour,ticket,island,basket,mirror,pocket,thunder"
)
_SENTENCES = (
    "The shop opens at nine.",
    "My sister lives near the station.",
    "We will plant two trees in spring.",
    "The old bridge was closed last week.",
    "He forgot his umbrella on the bus.",
    "The children are reading in the library.",
    "It rained for three days.",
    "She bought bread and cheese at the market.",
    "The boat reached the island before noon.",
    "Nobody heard the clock strike.",
)
_INSTRUCTIONS = (
    "Write one sentence about {thing}.",
    "Describe {thing} in a few words.",
    "What is {thing}? Answer briefly.",
    "Write a title for a story about {thing}.",
    "Why do people like {thing}? One sentence, please.",
    "What does {thing} look like?",
    "Name three {kind}.",
    "Give me an example of {kind}.",
    "List two {kind}, one on each line.",
    "What do {kind} have in common?",
    "What is the opposite of {quality}?",
    "Give another word for {quality}.",
    "Use the word {quality} in a sentence.",
    "Which letter does the word {word} begin with?",
    "How many letters are in the word {word}?",
    "Sort these words by the alphabet: {words}.",
    "Which of these words is the longest: {words}?",
    "Repeat these words in the same order: {words}.",
    "What is the last of these words: {words}?",
    "What is {number} plus {digit}?",
    "Which is larger, {number} or {digit}?",
    "Count from {digit} to ten.",
    "Make a question of this sentence: {sentence}",
    "Repeat this sentence: {sentence}",
    "Say this in other words: {sentence}",
    "What is this sentence about: {sentence}",
    "Is this sentence about the past? {sentence} Answer yes or no.",
)


def instructions(seed: int) -> Iterator[str]:
    """Instructions without end, each once for all that can be told apart."""
    rng, seen = random.Random(f"small-texts {seed}"), set()
    while True:
        text = rng.choice(_INSTRUCTIONS).format(
            thing=rng.choice(_THINGS),
            kind=rng.choice(_KINDS),
            quality=rng.choice(_QUALITIES),
            word=rng.choice(_WORDS),
            words=", ".join(rng.sample(_WORDS, rng.randint(3, 5))),
            number=rng.randint(10, 99),
            digit=rng.randint(1, 9),
            sentence=rng.choice(_SENTENCES),
        )
        if text not in seen:
            seen.add(text)
            yield text


def replay_rows(model: NatureLM, count: int, seed: int, most_tokens: int = 64) -> Iterator[Row]:
    """Up to `count` instructions with the answers that the base model gives to them.

    Answers that do not end within `most_tokens` are left out.
    """
    from NatureLM.generation.engine import Engine
    from NatureLM.generation.requests import GenerationOptions, Request
    from NatureLM.inference.loading import processor_of

    template = processor_of(model).prompt_template
    prompts: Sequence[str] = list(islice(instructions(seed), count))
    engine = Engine(model, GenerationOptions(max_new_tokens=most_tokens, num_beams=1))
    requests = (
        Request(place, template.replace("{}", prompt), (), 0.0 if model.config.lora else 1.0)
        for place, prompt in enumerate(prompts)
    )
    answers = {answer.key: answer for answer in engine.run(requests, lambda name: name)}
    for place, prompt in enumerate(prompts):
        answer = answers[place]
        if answer.is_whole and answer.text and answer.text.strip():
            yield {
                "prompt": prompt,
                "answer": answer.text.strip(),
                "task": "replay",
                "dataset": "text",
            }
