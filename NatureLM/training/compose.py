"""Samples made of several rows: few-shot blocks of labelled clips, and two-turn conversations.

All functions are pure; `query`, `support` and `earlier` are rows as the tables give them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from NatureLM.config.training import FewShotConfig
from NatureLM.prompts import AUDIO_TAG, render
from NatureLM.training.examples import Example


def plain_question(prompt: str) -> str:
    """A question without its place for the audio."""
    return prompt.replace(AUDIO_TAG, "").strip()


def few_shot_prompt(question: str, labels: Sequence[str]) -> str:
    """The question, one labelled place for audio per example, and an unlabelled one."""
    blocks = [f"Audio: {AUDIO_TAG}\nLabel: {label}" for label in labels]
    return "\n\n".join([plain_question(question), *blocks, f"Audio: {AUDIO_TAG}\nLabel:"]).strip()


def few_shot(query: Example, support: Sequence[Example]) -> Example:
    """The query with `support` spliced in front; clips in the order of their placeholders.

    Raises ValueError if a support clip is of the query's recording, or has not exactly one clip.
    """
    for example in (query, *support):
        if len(example.clips) != 1:
            raise ValueError(f"{example.id}: few-shot rows have one clip, not {len(example.clips)}")
    if any(_same_recording(query, example) for example in support):
        raise ValueError(f"{query.id}: an example clip is of the recording that is asked about")
    prompts = tuple(
        few_shot_prompt(prompt, [example.answer for example in support]) for prompt in query.prompts
    )
    clips = tuple(example.clips[0] for example in (*support, query))
    # A mix would change the answer that the examples point to.
    return replace(query, clips=clips, prompts=prompts, labels=())


class SupportPool:
    """Rows by task and answer, from which few-shot examples are drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_task: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
        for example in examples:
            if len(example.clips) == 1:
                self._by_task[example.task][example.answer].append(example)

    def draw(
        self, query: Example, config: FewShotConfig, rng: np.random.Generator
    ) -> list[Example]:
        """Labelled examples of the query's task, shuffled; empty if there are too few.

        The query's own answer is among the labels, examples are spread evenly over the labels, and
        none is of the query's recording.
        """
        answers = self._by_task.get(query.task, {})
        own = self._others(query, answers.get(query.answer, ()))
        if not own:
            return []
        total = int(rng.integers(config.min_examples, config.max_examples + 1))
        others = sorted(set(answers) - {query.answer})
        count = min(int(rng.integers(1, config.max_labels + 1)), total, 1 + len(others))
        chosen = [others[i] for i in rng.permutation(len(others))[: count - 1]]
        pools = [own, *(self._others(query, answers[label]) for label in chosen)]
        pools = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
        support: list[Example] = []
        while len(support) < total and any(pools):
            support += [pool.pop() for pool in pools if pool][: total - len(support)]
        if len(support) < config.min_examples:
            return []
        return [support[i] for i in rng.permutation(len(support))]

    @staticmethod
    def _others(query: Example, rows: Sequence[Example]) -> list[Example]:
        return [row for row in rows if not _same_recording(query, row)]


def _same_recording(one: Example, other: Example) -> bool:
    if one.group and one.group == other.group:
        return True
    return bool({clip.path for clip in one.clips} & {clip.path for clip in other.clips})


class ConversationPool:
    """Rows by their clips, from which an earlier question about the same clip is drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_clips: dict[object, list[Example]] = defaultdict(list)
        for example in examples:
            if example.clips:
                self._by_clips[example.clips].append(example)

    def draw(self, query: Example, rng: np.random.Generator) -> Example | None:
        """Another row about the same clip with other questions; None if there is none."""
        others = [
            row
            for row in self._by_clips.get(query.clips, ())
            if row.id != query.id and not set(row.prompts) & set(query.prompts)
        ]
        return others[int(rng.integers(len(others)))] if others else None


class QuestionPool:
    """Rows by their clips, from which further questions about the same clip are drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_clips: dict[object, list[Example]] = defaultdict(list)
        for example in examples:
            if example.clips:
                self._by_clips[example.clips].append(example)

    def draw(self, row: Example, count: int, rng: np.random.Generator) -> list[Example]:
        """Up to `count` other rows about the row's clip, by weight, each once."""
        others = [other for other in self._by_clips.get(row.clips, ()) if other.id != row.id]
        weights = np.array([other.weight for other in others])
        count = min(count, int((weights > 0).sum()))
        if count == 0:
            return []
        chosen = rng.choice(len(others), count, replace=False, p=weights / weights.sum())
        return [others[int(i)] for i in chosen]


def turn_end(template: str) -> str:
    """The text that ends a turn of the assistant: Llama 3's token where the template knows it."""
    return "<|eot_id|>" if "<|eot_id|>" in template else "\n"


def two_turns(template: str, earlier: tuple[str, str], question: str) -> str:
    """The complete prompt of a second question; `earlier` is the first one and its answer.

    The audio stands in the first turn only.
    """
    asked, answered = earlier
    first = render(template, asked)
    return (
        f"{first}{answered}{turn_end(template)}{template.replace('{}', plain_question(question))}"
    )


def as_second_turn(
    template: str, earlier: Example, query: Example, rng: np.random.Generator
) -> Example:
    """The query as the second question of a conversation; its prompt is complete."""
    asked = earlier.prompts[int(rng.integers(len(earlier.prompts)))]
    question = query.prompts[int(rng.integers(len(query.prompts)))]
    prompt = two_turns(template, (asked, earlier.answer), question)
    return replace(query.with_prompt(prompt, rendered=True), labels=())
