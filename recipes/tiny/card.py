"""The model card of the embedded model, written from its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipes.tiny.architecture import WINDOW_DELAYS
from recipes.tiny.evaluate import Result
from recipes.tiny.text.species import HEARD

_SOURCES = """\
| source (GitHub) | taken | license text in the source |
|---|---|---|
| YashNita/Animal-Sound-Dataset | 10 classes of domestic and wild animals | none stated |
| anEvolvingPatternIntegrity/frog-call-trainer | eastern US frogs and toads | \
its guide names USGS ARMI (free) and iNaturalist CC-BY recordings |
| ani11452/Fourier-Analysis-for-Frog-Call-Classification | 8 frog species | none stated |
| AliNaeemCh/Bird-Sounds-Classification-MATLAB | 8 bird species | none stated |
| HE-22/Bird-Sound-Flashcards | unseen birds, used for measuring only | none stated |
| karolpiczak/ESC-10 | folds 1 to 3 for training, 4 for measuring | \
CC-BY (clips: CC0, CC-BY, CC-Sampling+) |"""

_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: audio-text-to-text
tags: [bioacoustics, naturelm-audio]
---

# naturelm-tiny

The embedded model of NatureLM: the architecture of NatureLM-audio in small (BEATs encoder, window
Q-Former, linear projection, Llama with LoRA), {parameters:.1f} million parameters, \
{megabytes:.1f} MB. It
answers questions about ten-second windows of sound on a laptop, offline. It is made for trying
the software out, for tests and for small studies of merging; it is not made for science.

## What it was trained on

{clips} clips of `train` (animals) and of folds 1 to 3 (ESC-10), {minutes:.0f} minutes of sound, and
instruction text that a seeded program writes. It saw no other weights and no other data. **ESC-10
is part of ESC-50, which is a component of BEANS-Zero**: numbers of this model on that component are
not zero-shot.

{sources}

The recordings are not part of this project; the weights are.

## What it knows

Animals: {animals}.

Other sounds: {sounds}.

"Bird", "Frog" and "Monkey" are groups of species in the data. It can be asked for the common name,
the scientific name, the group (bird, frog, mammal, none), what makes the sound, a choice from a
list, whether something is in it (yes or no), which animals are in it (`None` if there are none)
and a short caption.

## How well

Exact answers, greedy decoding, scale of the adapter (α) {alpha:g}. Intervals are 95 % bootstrap
intervals over recordings ("families"), so that copies of a recording count once. "Commonest" is
what a model gets that always gives the commonest answer. None of these clips was trained on or
used to choose anything.

| question | clips | accuracy | macro accuracy | commonest |
|---|---|---|---|---|
{rows}

Measured by `python -m recipes.tiny.evaluate --data-path DATA`.

## Limits

- It names the {classes} classes above and nothing else: any other species is called by the name of
  something that sounds alike. There is no answer "I do not know".
- 16 kHz: what lies above 8 kHz is not heard. Windows of ten seconds; one or two sources at a time.
- Several classes have fewer than ten training clips from few recordings; all clips of a class tend
  to come from one collection, and the model may have learnt its sound.
- Text is generated from templates; instructions of other kinds may not be followed.

## Training

    {command}

runs five stages, seed {seed}:

1. text: a Llama of 3.5 million parameters learns generated instructions, from nothing;
2. teachers: two convolutional networks learn to name the sounds;
3. encoder: BEATs and the Q-Former learn it from them;
4. audio: `naturelm train` with `configs/tiny/audio.yml`. LoRA and, slowly, the Q-Former learn to
   answer about recordings; the language model, BEATs and the (random) projection stay as they are,
   so that the language model cannot hear at α 0;
5. polish: the same for longer and more slowly (`configs/tiny/polish.yml`), from what the teachers
   would answer; sounds without an animal are seldom asked for an animal's name, and lists seldom
   lack what is heard.

The finished model hears each window three times, {delays} s late, and averages what it hears
(`window_delays`).

What helped and what did not, learning curves and confusions are in `docs/explanation/tiny-model.md`
of the repository, what α does in `docs/explanation/merging.md`. {notes}
"""


def write_card(
    folder: Path,
    results: Sequence[Result],
    *,
    clips: int,
    minutes: float,
    parameters: int,
    command: str,
    seed: int,
    alpha: float = 1.0,
    notes: str = "",
) -> None:
    """Write `folder/README.md`; `minutes` and `clips` are those of the training data."""
    rows = "\n".join(
        f"| {r.question} ({r.split}) | {r.accuracy.samples} | {r.accuracy} | {r.macro_accuracy} "
        f"| {r.chance:.3f} |"
        for r in results
    )
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md")
    text = _CARD.format(
        parameters=parameters / 1e6,
        megabytes=size / 1e6,
        clips=clips,
        minutes=minutes,
        sources=_SOURCES,
        animals=", ".join(sorted(s.name for s in HEARD if s.is_animal)),
        sounds=", ".join(sorted(s.name for s in HEARD if not s.is_animal)),
        alpha=alpha,
        rows=rows,
        classes=len(HEARD),
        delays=", ".join(f"{delay:g}" for delay in WINDOW_DELAYS),
        command=command,
        seed=seed,
        notes=notes,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
