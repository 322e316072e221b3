"""The stage `context`: the finished model learns to name sounds by the examples in its prompt.

LoRA goes on learning, on the audio vectors of many views: tasks that only their examples can tell
(both in `context_data.py`), beside the questions of before, whose answers are kept near
those that the model gave (a divergence from them is part of the loss). First, of the tasks only
the aims of a few attention heads are learnt: where they should look for the answer to be found at
all. Everything else of the model stays as it is.

Shapes: R rows, L positions, K answer positions, D width of the language model, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from NatureLM.prompts import PLACEHOLDER, render, token_ids, with_clips
from recipes import Arguments, program
from recipes.tiny import wordings
from recipes.tiny.context_data import (
    DENSE,
    SHAPES,
    Kinds,
    Prompt,
    Shape,
    Views,
    ViewSettings,
    joined,
    make_views,
    noise_views,
)
from recipes.tiny.data import (
    FAMILY_WEIGHTS,
    TRAINING_SPLITS,
    Clip,
    clips_of,
    read_clips,
    training_clips,
)
from recipes.tiny.species import Source, source
from recipes.tiny.tasks import NONE, ask

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

_IGNORE = -1
_BEFORE_LABEL = "</Audio>\nLabel:"
_MOST_KNOWN = 200_000
# By layer, what some of its heads are to look at. In the first two those that other questions need
# least; the one in the last copies what is right from a list.
_AIMS: dict[int, tuple[str, tuple[int, ...]]] = {
    0: ("own sound", (3,)),
    1: ("same kind", (2, 3)),
    3: ("same kind", (1,)),
}
_PAIRS = 2000
_LOG_EVERY, _WATCH_EVERY, _WATCHED = 10, 100, 96
LORA = "lora.safetensors"


@dataclass(frozen=True)
class ContextSettings:
    """Length and mixture of the stage.

    aims: updates in which of the tasks only the aims of attention are learnt, which is far quicker
    steps: updates after that; fewer where `seconds` are over before
    sounds: sounds in the prompts of an update, together
    questions: rows of an update with the questions of before
    aim, told, divergence: weights of the aims, of the labels of examples whose kind the prompt
        showed before, and of the divergence from the answers that the model gave before
    noise: standard deviation of noise that is added to the sounds of tasks, relative to theirs
    unsure: part of the questions that are about sounds at another pitch, which are no known
        animal any more: half of them learn a name that is drawn
    absent: share of the lists that lack what is heard
    no_animal: how often sounds without an animal are asked for a name, relative to others
    noises: noises in which nothing is; noisy: part of the questions that are about one
    average: decay of the moving average of the weights, which is the result
    """

    aims: int = 800
    steps: int = 6000
    seconds: float | None = None
    sounds: int = 45
    questions: int = 24
    learning_rate: float = 2e-3
    warmup: int = 20
    weight_decay: float = 0.01
    aim: float = 1.0
    told: float = 0.0
    divergence: float = 8.0
    noise: float = 0.2
    unsure: float = 0.1
    absent: float = 0.03
    no_animal: float = 0.3
    noises: int = 240
    noisy: float = 0.12
    average: float = 0.995
    seed: int = 1

    @property
    def updates(self) -> int:
        """Of both parts together."""
        return self.aims + self.steps


@dataclass(frozen=True)
class Rows:
    """Prompts and answers as numbers, padded on the right; -1 where there is nothing.

    ids_RL: tokens; where sound is, 0
    sound_RL: audio vector at a position (view times positions of a view, plus place)
    other_RL: one that is mixed into it
    targets_RL: the token that follows each position of an answer
    told_RL: the same for the labels of examples whose kind was shown before
    block_RL: number of the sound that stands at a position, or that its label is about
    shown_RL, asked_RL: kind of sound where its label begins, and where a label is to be told
    kept_R: whether the answer is to stay near that of before
    share_RL: how much of the first is left where two are mixed
    """

    ids_RL: Tensor
    sound_RL: Tensor
    other_RL: Tensor
    targets_RL: Tensor
    told_RL: Tensor
    block_RL: Tensor
    shown_RL: Tensor
    asked_RL: Tensor
    kept_R: Tensor
    share_RL: Tensor


class RowMaker:
    """Makes rows of prompts, as the model renders and tokenises them."""

    def __init__(self, model: NatureLM, positions: int) -> None:
        assert model.processor is not None
        self._template = model.processor.prompt_template
        self._tokenizer = model.tokenizer
        self._end = model.config.end_sym
        self._positions = positions
        self._known: dict[str, list[int]] = {}  # parts of prompts come again and again

    def rows(self, prompts: Sequence[Prompt]) -> Rows:
        """The prompts with their answers."""
        made = [self._row(prompt) for prompt in prompts]
        longest = max(len(row[0]) for row in made)
        padded = torch.full((8, len(made), longest), _IGNORE)
        share_RL = torch.ones(len(made), longest)
        for at, (row, prompt) in enumerate(zip(made, prompts, strict=True)):
            padded[:, at, : len(row[0])] = torch.tensor(row)
            if prompt.shares:
                shares = torch.tensor(prompt.shares).repeat_interleave(self._positions)
                share_RL[at, padded[1, at] != _IGNORE] = shares
        padded[0].clamp_min_(0)
        kept_R = torch.tensor([one.kept for one in prompts])
        ids, sound, other, targets, told, block, shown, asked = padded
        return Rows(ids, sound, other, targets, told, block, shown, asked, kept_R, share_RL)

    def _row(self, prompt: Prompt) -> list[list[int]]:
        parts = render(self._template, with_clips(prompt.query, 1)).split(PLACEHOLDER)
        first = [self._tokenizer.bos_token_id, *self._tokens(parts[0])]
        row = [first, *([_IGNORE] * len(first) for _ in range(7))]
        ids, sound, other, targets, told, block, shown, asked = row
        kinds: dict[str, int] = {}
        for number, (view, part) in enumerate(zip(prompt.views, parts[1:], strict=True)):
            tokens = self._tokens(part)
            at = len(ids) + self._positions
            ids += [0] * self._positions + tokens
            sound += self._vectors(view)
            other += self._vectors(prompt.others[number]) if prompt.others else []
            block += [number] * self._positions
            for one in row[1:]:
                one += [_IGNORE] * (len(ids) - len(one))
            label = part[len(_BEFORE_LABEL) :].partition("\n")[0]
            if part.startswith(_BEFORE_LABEL) and label.strip() and "<" not in label:
                at += len(self._tokens(_BEFORE_LABEL))  # where the label begins
                block[at - 1] = block[at] = number
                if label in kinds:
                    follows = self._tokens(label)
                    told[at - 1 : at - 1 + len(follows)] = follows
                    asked[at - 1] = kinds[label]
                shown[at] = kinds.setdefault(label, len(kinds))
        answer = self._tokens(prompt.answer + self._end)
        asked[-1], block[-1] = kinds.get(f" {prompt.answer}", _IGNORE), len(prompt.views) - 1
        targets[-1] = answer[0]
        targets += answer[1:]
        ids += answer[:-1]
        for one in row:
            one += [_IGNORE] * (len(ids) - len(one))
        return row

    def _vectors(self, view: int) -> range:
        return range(view * self._positions, (view + 1) * self._positions)

    def _tokens(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            self._known[text] = token_ids(text, self._tokenizer)
        return self._known[text]


# What there is to ask of a noise, and one of the sounds that are no animal either.
_OF_NOISE = (wordings.COMMON, wordings.SCIENTIFIC, wordings.GROUP, wordings.ANIMALS_PRESENT)
_NO_ANIMAL = "Rain"
# Asked more often than before: what tells a sound from a name that is given is the first to go.
_MORE = {wordings.YES_NO: 5.0, wordings.CHOICE: 3.0}


class Questions:
    """The questions of before, about views of clips near their own pitch and speed."""

    def __init__(
        self,
        views: Views,
        clips: Sequence[Clip],
        settings: ContextSettings,
        *,
        noises: int = 0,
        balance: float = 0.5,
    ) -> None:
        """`noises`: how many of them there are, behind the views."""
        self._noises = range(len(views.clip_N), len(views.clip_N) + noises)
        self._clips, self._settings = list(clips), settings
        self._own: dict[int, list[int]] = {}
        self._other: dict[int, list[int]] = {}
        for view, (clip, voice) in enumerate(zip(views.clip_N, views.voice_N, strict=True)):
            (self._other if voice else self._own).setdefault(int(clip), []).append(view)
        self._learnt = [at for at, clip in enumerate(clips) if clip.split in TRAINING_SPLITS]
        names = [clips[at].label for at in self._learnt]
        self._weights = [names.count(name) ** -balance for name in names]
        self._pool = [source(name) for name in sorted(set(names))]
        self._animals = [one for one in self._pool if one.is_animal]

    def draw(self, count: int, rng: random.Random) -> list[Prompt]:
        """Questions about clips to learn from."""
        return [self._ask(at, rng) for at in rng.choices(self._learnt, self._weights, k=count)]

    def _of_noise(self, rng: random.Random) -> Prompt:
        query, answer = ask(rng.choice(_OF_NOISE), [source(_NO_ANIMAL)], self._pool, rng)
        return Prompt(query, (rng.choice(self._noises),), answer)

    def about_all(self, family: str, rng: random.Random) -> list[Prompt]:
        """A question of the family about each clip that is not learnt from, as it is."""
        asked = []
        for at in sorted(set(range(len(self._clips))) - set(self._learnt)):
            query, answer = ask(family, [self._clips[at].source], self._pool, rng, longest_list=36)
            asked.append(Prompt(query, (self._own[at][0],), answer))
        return asked

    def _ask(self, place: int, rng: random.Random) -> Prompt:
        settings, heard = self._settings, self._clips[place].source
        if self._noises and rng.random() < settings.noisy:
            return self._of_noise(rng)
        if self._other and heard.is_animal and rng.random() < settings.unsure:
            return self._unsure(place, heard, rng)
        weights = FAMILY_WEIGHTS | _MORE
        family = rng.choices(list(weights), list(weights.values()))[0]
        named = family in (wordings.COMMON, wordings.SCIENTIFIC)
        if named and not heard.is_animal and rng.random() > settings.no_animal:
            family = wordings.SOUND
        longest = 36 if rng.random() < 0.3 else 12
        query, answer = ask(family, [heard], self._pool, rng, longest_list=longest)
        if family == wordings.CHOICE and answer == NONE and rng.random() > settings.absent * 8:
            query, answer = ask(family, [heard], self._pool, rng, longest_list=longest)
        return Prompt(query, (rng.choice(self._own[place]),), answer, kept=True)

    def _unsure(self, place: int, heard: Source, rng: random.Random) -> Prompt:
        """A name for a sound at another pitch: its own, or any."""
        named = heard if rng.random() < 0.5 else rng.choice(self._animals)
        family = wordings.SCIENTIFIC if named.scientific and rng.random() < 0.2 else wordings.COMMON
        query, answer = ask(family, [named], self._pool, rng)
        return Prompt(query, (rng.choice(self._other[place]),), answer)


def batches(
    maker: RowMaker, kinds: Kinds, questions: Questions, settings: ContextSettings
) -> Iterator[tuple[Rows, Rows]]:
    """Rows of tasks and rows of questions for each update, as a pure function of the seed."""
    for step in range(settings.updates):
        rng = random.Random(f"tiny-context {settings.seed} {step}")
        shape = rng.choices([s for s, _ in SHAPES], [w for _, w in SHAPES])[0]
        if step < settings.aims:
            shape = rng.choice(DENSE)
        tasks = [kinds.task(shape, rng) for _ in range(max(2, settings.sounds // shape.sounds))]
        yield maker.rows(tasks), maker.rows(questions.draw(settings.questions, rng))


class Reader:
    """The language model over rows whose sound is given as audio vectors of views."""

    def __init__(
        self,
        model: NatureLM,
        views: Views,
        clips: Sequence[Clip],
        noises_NQW: Tensor | None = None,
    ) -> None:
        self._language: Any = model.language_model
        self._embed = model.llama_embed_tokens
        one, other = _of_one_class(views, clips)
        vectors = [views.vectors_NQW, *([] if noises_NQW is None else [noises_NQW])]
        with torch.no_grad():
            sound_NQD = model.audio_llama_proj(torch.cat(vectors).float())
        self._apart_MQD = sound_NQD[one] - sound_NQD[other]
        self._sound_ND = sound_NQD.flatten(0, 1)
        self._mean_D, self._spread_D = self._sound_ND.mean(dim=0), self._sound_ND.std(dim=0)

    def embeddings(self, rows: Rows, *, noise: float = 0.0) -> Tensor:
        """Input embeddings (R, L, D).

        noise: sounds are changed, each as one of a class differs from another of it and by noise,
            both multiplied by this
        """
        embeds: Tensor = self._embed(rows.ids_RL)
        heard = rows.sound_RL != _IGNORE
        sound = self._sound_ND[rows.sound_RL[heard]]
        mixed, other = rows.share_RL[heard][:, None], rows.other_RL[heard]
        if (other != _IGNORE).any():
            # As far from the mean of all as a sound that is not mixed.
            whole = (mixed**2 + (1 - mixed) ** 2).sqrt()
            second = self._sound_ND[other.clamp_min(0)] - self._mean_D
            sound = self._mean_D + (mixed * (sound - self._mean_D) + (1 - mixed) * second) / whole
        if noise:
            sound = sound + noise * self._spread_D * torch.randn_like(sound)
            sounds = len(sound) // self._apart_MQD.shape[1]
            apart_SQD = self._apart_MQD[torch.randint(len(self._apart_MQD), (sounds,))]
            share = noise * 2 * torch.rand(len(apart_SQD), 1, 1)
            sound = sound + (share * apart_SQD).flatten(0, 1)
        placed: Tensor = embeds.masked_scatter(heard[..., None], sound.to(embeds.dtype))
        return placed

    def logits(self, rows: Rows, targets_RL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (K, V) where there are targets, and the tokens that are right (K,).

        targets_RL: by default those of the answers
        """
        # Padding stands on the right, where no position of a prompt looks.
        states = self._language.model(inputs_embeds=self.embeddings(rows), use_cache=False)
        return self._read(states.last_hidden_state, rows.targets_RL)

    def aimed(
        self, rows: Rows, noise: float, *, only_aims: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """How far attention misses its two aims; logits and tokens as above.

        Labels, and what asks for one, look at their own sound; what asks, at the labels of the same
        kind (`_AIMS`).

        only_aims: leave out what follows the first two layers
        """
        inner = self._language.model
        states = self.embeddings(rows, noise=noise)
        places = torch.arange(states.shape[1], device=states.device)[None]
        turned = inner.rotary_emb(states, places)
        is_sound = torch.where(rows.sound_RL != _IGNORE, rows.block_RL, _IGNORE)
        own = torch.where(rows.sound_RL != _IGNORE, _IGNORE, rows.block_RL)
        aims = {"own sound": (own, is_sound), "same kind": (rows.asked_RL, rows.shown_RL)}
        missed: dict[str, list[Tensor]] = {"own sound": [], "same kind": []}
        for number, layer in enumerate(inner.layers):
            if number in _AIMS:
                name, heads = _AIMS[number]
                missed[name].append(_missed(layer, states, turned, heads, *aims[name]))
            if only_aims and number == 1:
                break
            states = layer(states, position_ids=places, position_embeddings=turned)
        pooled, matched = (torch.stack(found).mean() for found in missed.values())
        if only_aims:
            return pooled, matched, None
        targets = torch.where(rows.told_RL == _IGNORE, rows.targets_RL, rows.told_RL)
        return pooled, matched, self._read(inner.norm(states), targets)

    def _read(self, states: Tensor, targets_RL: Tensor) -> tuple[Tensor, Tensor]:
        scored = targets_RL != _IGNORE
        return self._language.lm_head(states[scored]).float(), targets_RL[scored]

    def like(self, model: NatureLM) -> Reader:
        """The same sounds, read by another model."""
        other = copy.copy(self)
        other._language, other._embed = model.language_model, model.llama_embed_tokens
        return other


def _of_one_class(views: Views, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Pairs of views of a class, or of a voice, as two lists."""
    rng = random.Random("tiny-context pairs")
    alike: dict[Any, list[int]] = {}
    for view, (clip, voice) in enumerate(zip(views.clip_N, views.voice_N, strict=True)):
        if clips[clip].split in TRAINING_SPLITS:
            alike.setdefault(clips[clip].label if voice == 0 else (clip, voice), []).append(view)
    pools = [pool for pool in alike.values() if len(pool) > 1]
    pairs = [rng.sample(rng.choice(pools), 2) for _ in range(_PAIRS)]
    return torch.tensor([one for one, _ in pairs]), torch.tensor([other for _, other in pairs])


def _missed(
    layer: Any,
    states: Tensor,
    turned: Any,
    heads: Sequence[int],
    seeking_RL: Tensor,
    sought_RL: Tensor,
) -> Tensor:
    """Surprise at attention of the aimed heads falling on positions of the same number before."""
    attention = layer.self_attn
    normed = layer.input_layernorm(states)
    q, k = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *turned)
    row, place = (seeking_RL != _IGNORE).nonzero(as_tuple=True)
    groups = attention.num_key_value_groups
    q_NHD = q.transpose(1, 2)[row, place][:, list(heads)]
    k_RHLD = k[:, [head // groups for head in heads]]
    scores_NHL = torch.stack(
        [torch.einsum("nd,nld->nl", q_NHD[:, h], k_RHLD[:, h][row]) for h in range(len(heads))], 1
    )
    scores_NHL = scores_NHL * attention.scaling
    earlier = torch.arange(states.shape[1], device=states.device)[None] <= place[:, None]
    same = (sought_RL[row] == seeking_RL[row, place][:, None]) & earlier
    found = same.any(dim=1)
    whole = scores_NHL.masked_fill(~earlier[:, None], -torch.inf).logsumexp(-1)
    right = scores_NHL.masked_fill(~same[:, None], -torch.inf)[found].logsumexp(-1)
    missed: Tensor = (whole[found] - right).mean()
    return missed


def exact(logits_KV: Tensor, rows: Rows) -> list[bool]:
    """Whether every token of each answer is the likeliest, so that it is the greedy answer."""
    scored = rows.targets_RL != _IGNORE
    right = torch.ones_like(scored)
    right[scored] = logits_KV.argmax(-1) == rows.targets_RL[scored]
    return list(right.all(dim=1).tolist())


def train_context(
    model: NatureLM,
    views: Views,
    clips: Sequence[Clip],
    settings: ContextSettings,
    folder: Path,
    *,
    held_out: Sequence[str] = (),
    start: Path | None = None,
) -> None:
    """Train LoRA of `model` in place, which ends as the moving average of its weights.

    clips: those of the views; what is of no training split is watched only
    held_out: classes that no task is about, to be watched
    start: weights to begin with, as an earlier run wrote them; answers are kept near those of
        `model` all the same
    """
    folder.mkdir(parents=True, exist_ok=True)
    in_use: Any = model
    in_use.eval()
    before = copy.deepcopy(model)
    if start is not None:
        model.load_state_dict(load_file(start), strict=False)
    trained = _lora(model)
    noises = noise_views(model, settings.noises)
    reader = Reader(model, views, clips, noises)
    old = reader.like(before)
    maker = RowMaker(model, views.vectors_NQW.shape[1])
    learnt = [clip for clip in clips if clip.split in TRAINING_SPLITS]
    taught = sorted({clip.label for clip in learnt} - set(held_out))
    questions = Questions(views, clips, settings, noises=len(noises))
    drawn = batches(maker, Kinds(views, clips, taught), questions, settings)
    watch = (
        Watch(maker, Kinds(views, clips, held_out), Questions(views, clips, settings))
        if held_out
        else None
    )
    optimizer = torch.optim.AdamW(
        trained.values(),
        settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    average = [parameter.detach().clone() for parameter in trained.values()]
    log = _Log(folder / "context.jsonl")
    since, done, step = time.monotonic(), 0.0, 0
    for step, (tasks, asked) in enumerate(drawn):
        spent = (time.monotonic() - since) / (settings.seconds or float("inf"))
        done = max(step / settings.updates, spent)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, done, settings.warmup)
        losses = _losses(reader, old, tasks, asked, settings, step < settings.aims)
        optimizer.zero_grad(set_to_none=True)
        _weighed(losses, settings).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        decay = min(settings.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [one.detach() for one in trained.values()], 1 - decay)
        if step % _LOG_EVERY == 0:
            numbers = {name: float(value.detach()) for name, value in losses.items()}
            log(step=step, seconds=time.monotonic() - since, done=done, **numbers)
        if step % _WATCH_EVERY == _WATCH_EVERY - 1:
            save_file(dict(zip(trained, average, strict=True)), folder / LORA)
            if watch is not None and step >= settings.aims:
                log(step=step, **watch(reader))
    with torch.no_grad():
        for parameter, mean in zip(trained.values(), average, strict=True):
            parameter.copy_(mean)
    save_file(dict(zip(trained, average, strict=True)), folder / LORA)
    if watch is not None:
        log(step=step, **watch(reader))


def _weighed(losses: dict[str, Tensor], settings: ContextSettings) -> Tensor:
    """One loss of all."""
    aims = losses["pooled"] + losses["matched"]
    before = losses["questions"] + settings.divergence * losses["divergence"]
    if "tasks" not in losses:
        return aims + before
    return losses["tasks"] + settings.told * losses["told"] + settings.aim * aims + before


def _losses(
    reader: Reader,
    old: Reader,
    tasks: Rows,
    asked: Rows,
    settings: ContextSettings,
    only_aims: bool,
) -> dict[str, Tensor]:
    """Losses of an update, and the parts of its tokens that are right.

    only_aims: of the tasks only the aims of attention are learnt
    """
    asked_logits, asked_right = reader.logits(asked)
    with torch.no_grad():
        before, _ = old.logits(asked)
    kept = asked.kept_R[:, None].expand_as(asked.ids_RL)[asked.targets_RL != _IGNORE]
    apart = F.kl_div(asked_logits.log_softmax(-1), before.softmax(-1), reduction="none").sum(-1)
    pooled, matched, read = reader.aimed(tasks, settings.noise, only_aims=only_aims)
    losses = {
        "pooled": pooled,
        "matched": matched,
        "questions": F.cross_entropy(asked_logits, asked_right),
        "divergence": apart[kept].sum() / len(apart),
        "asked_right": (asked_logits.argmax(-1) == asked_right).float().mean(),
    }
    if read is None:
        return losses
    logits, right = read
    told = tasks.told_RL != _IGNORE
    is_told = told[told | (tasks.targets_RL != _IGNORE)]
    surprise = F.cross_entropy(logits, right, reduction="none")
    hit = (logits.argmax(-1) == right).float()
    return losses | {
        "tasks": surprise[~is_told].mean(),
        "told": surprise[is_told].sum() / is_told.sum().clamp_min(1),
        "right": hit[~is_told].mean(),
        "told_right": hit[is_told].sum() / is_told.sum().clamp_min(1),
    }


def _lora(model: NatureLM) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn; all others are frozen."""
    found = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            found[name] = parameter
    return found


def _rate(step: int, done: float, warmup: int) -> float:
    """Part of the learning rate: up, then as it is, then down as a cosine over the last 60 %."""
    up = min(1.0, (step + 1) / warmup)
    down = 0.5 * (1 + np.cos(np.pi * max(0.0, (done - 0.4) / 0.6)))
    return float(up * max(0.01, down))


class _Log:
    """Lines of numbers to the console and to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, **numbers: float) -> None:
        line = json.dumps({name: round(value, 4) for name, value in numbers.items()})
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Watch:
    """Tasks about classes that no task of the training is about, and questions about `valid`."""

    def __init__(self, maker: RowMaker, tasks: Kinds, questions: Questions) -> None:
        self._rows = {}
        for shape in (Shape(2, 1), Shape(2, 3), Shape(4, 1), Shape(4, 1, True)):
            rng = random.Random("tiny-context watch")
            name = f"{shape.ways} ways {shape.shots} each" + (" or none" * shape.may_be_none)
            self._rows[name] = maker.rows([tasks.task(shape, rng) for _ in range(_WATCHED)])
        rng = random.Random("tiny-context watch")
        for family in (wordings.COMMON, wordings.CHOICE, wordings.YES_NO, wordings.GROUP):
            self._rows[family] = maker.rows(questions.about_all(family, rng))

    @torch.no_grad()
    def __call__(self, reader: Reader) -> dict[str, float]:
        """Part of the answers that are right, for each kind of question."""
        found = {}
        for name, rows in self._rows.items():
            right = exact(reader.logits(rows)[0], rows)
            found[name] = sum(right) / len(right)
        return found


@program
def main(arguments: Arguments) -> None:
    """Train on its own, from a model that there is: views are made once in the output folder."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.context")
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--model", default="naturelm-tiny", help="name or folder")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--held-out", default="", help="classes to watch, parted by commas")
    parser.add_argument("--lora", type=Path, help="weights to go on from, as such a run wrote them")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the stage, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)

    from NatureLM.models import NatureLM

    torch.set_num_threads(options.threads)
    clips = read_clips(options.data_path)
    model = NatureLM.from_pretrained(options.model)
    learnt, watched = training_clips(clips), clips_of(clips, "valid")
    views, chosen = views_in(options.output_path, model, learnt, watched, ViewSettings())
    train_context(
        model,
        views,
        chosen,
        ContextSettings(**options.settings),
        options.output_path,
        held_out=[name for name in options.held_out.split(",") if name],
        start=options.lora,
    )


def views_in(
    folder: Path,
    model: NatureLM,
    learnt: Sequence[Clip],
    watched: Sequence[Clip],
    settings: ViewSettings,
) -> tuple[Views, list[Clip]]:
    """Views of clips to learn from, and those to watch as they are; and the clips of the views.

    They are made once in the folder.
    """
    chosen = settings.chosen(learnt)
    path = folder / "views.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        plain = replace(settings, own=0, voices=0)
        joined([make_views(model, chosen, settings), make_views(model, watched, plain)]).save(path)
    return Views.load(path), [*chosen, *watched]


if __name__ == "__main__":
    sys.exit(main())
