"""What is in ``assets/``: the table of clips, and how a clip is put together and written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from . import birds, frogs, mammals, ogg, surroundings
from .dsp import Rng, Signal, decibels, normalise, outdoors, place, reverberate, samples

Call = Callable[[Rng, int, float], Signal]

VORBIS_COMPRESSION = 0.6
BLOCK = 65536


@dataclass(frozen=True)
class Sound:
    """One sound: how to make it, what it is called, and where it is described."""

    call: Call
    label: str
    scientific_name: str
    group: str
    source: str

    @property
    def method(self) -> str:
        """The call's docstring on one line."""
        return " ".join((inspect.getdoc(self.call) or "").split())


@dataclass(frozen=True)
class Part:
    """A sound within a clip: start and length in seconds, peak level in dB, place (-1 to 1)."""

    sound: Sound
    start: float
    seconds: float
    peak: float
    pan: float = 0.0


@dataclass(frozen=True)
class Clip:
    """One file of ``assets/``; the suffix chooses the format.

    ``background`` is the level of the soft outdoor noise (dB, None for none) and ``echo`` the
    decay time (s) and level (dB) of the reverberation.
    """

    file: str
    parts: tuple[Part, ...]
    seconds: float
    seed: int
    description: str
    background: float | None
    echo: tuple[float, float] | None
    sample_rate: int = 16000
    channels: int = 1

    @property
    def lossy(self) -> bool:
        return self.file.lower().endswith(".ogg")


BIRDS_WP = "Cramp (ed. 1985), The Birds of the Western Palearctic, vol. 4"
SOUND_DESIGN = "Farnell (2010), Designing Sound, MIT Press"

CUCKOO = Sound(
    birds.common_cuckoo,
    "Common Cuckoo",
    "Cuculus canorus",
    "bird",
    f"{BIRDS_WP}; Fuisz & de Kort (2007), Proc. R. Soc. B 274:2093",
)
NIGHTJAR = Sound(
    birds.european_nightjar,
    "European Nightjar",
    "Caprimulgus europaeus",
    "bird",
    f"{BIRDS_WP}; Rebbeck et al. (2001), Ibis 143:468",
)
BARN_OWL = Sound(birds.barn_owl, "Barn Owl", "Tyto alba", "bird", BIRDS_WP)
ROOSTER = Sound(
    birds.rooster,
    "Rooster",
    "Gallus gallus",
    "bird",
    "Collias & Joos (1953), Behaviour 5:175",
)
TOAD = Sound(
    frogs.american_toad,
    "American Toad",
    "Anaxyrus americanus",
    "frog",
    "Zweifel (1968), Copeia 1968:269; Dorcas & Gibbons (2008), Frogs and Toads of the Southeast",
)
SQUIRREL_TREEFROG = Sound(
    frogs.squirrel_treefrog,
    "Squirrel Treefrog",
    "Dryophytes squirellus",
    "frog",
    "Dorcas & Gibbons (2008), Frogs and Toads of the Southeast",
)
GREEN_TREEFROG = Sound(
    frogs.green_treefrog,
    "Green Treefrog",
    "Dryophytes cinereus",
    "frog",
    "Gerhardt (1974), J. Exp. Biol. 61:229; Oldham & Gerhardt (1975), Copeia 1975:223",
)
WOLF = Sound(
    mammals.gray_wolf,
    "Gray Wolf",
    "Canis lupus",
    "mammal",
    "Theberge & Falls (1967), American Zoologist 7:331",
)
DOG = Sound(
    mammals.dog,
    "Dog",
    "Canis familiaris",
    "mammal",
    "Yin & McCowan (2004), Animal Behaviour 68:343",
)
CAT = Sound(
    mammals.cat,
    "Cat",
    "Felis catus",
    "mammal",
    "Nicastro & Owren (2003), J. Comp. Psychol. 117:44",
)
COW = Sound(
    mammals.cow,
    "Cow",
    "Bos taurus",
    "mammal",
    "Padilla de la Torre et al. (2015), Appl. Anim. Behav. Sci. 163:58",
)
RAIN = Sound(surroundings.rain, "Rain", "", "none", SOUND_DESIGN)
HELICOPTER = Sound(surroundings.helicopter, "Helicopter", "", "none", SOUND_DESIGN)
CHAINSAW = Sound(surroundings.chainsaw, "Chainsaw", "", "none", SOUND_DESIGN)


QUIET = -58.0
WOODS = (0.8, -16.0)


def _one(
    sound: Sound,
    name: str,
    seconds: float,
    seed: int,
    description: str,
    *,
    peak: float = -4.0,
    background: float | None = QUIET,
    echo: tuple[float, float] | None = WOODS,
) -> Clip:
    """A clip of a single sound."""
    parts = (Part(sound, 0.0, seconds, peak),)
    return Clip(f"synthetic_{name}", parts, seconds, seed, description, background, echo)


CLIPS: tuple[Clip, ...] = (
    _one(CUCKOO, "common_cuckoo.flac", 6.0, 101, "A cuckoo calls its name four times", peak=-14.0),
    _one(NIGHTJAR, "european_nightjar.flac", 3.6, 102, "A nightjar churrs", peak=-12.0),
    _one(
        BARN_OWL,
        "barn_owl.flac",
        5.2,
        103,
        "A barn owl screeches twice",
        peak=-8.0,
        background=-64.0,
        echo=(0.5, -20.0),
    ),
    _one(ROOSTER, "rooster.flac", 4.0, 104, "A rooster crows", background=-64.0),
    _one(
        TOAD,
        "american_toad.flac",
        6.6,
        105,
        "A toad trills for five seconds",
        peak=-16.0,
        background=-64.0,
    ),
    _one(
        SQUIRREL_TREEFROG,
        "squirrel_treefrog.flac",
        5.0,
        106,
        "A treefrog quacks eight times",
        peak=-14.0,
    ),
    _one(
        GREEN_TREEFROG, "green_treefrog.flac", 3.6, 107, "A treefrog honks four times", peak=-10.0
    ),
    _one(
        WOLF,
        "gray_wolf.flac",
        7.2,
        108,
        "Two wolves howl",
        peak=-10.0,
        background=-63.0,
        echo=(2.0, -10.0),
    ),
    _one(DOG, "dog.WAV", 3.2, 109, "A dog barks five times", echo=(0.4, -18.0)),
    _one(CAT, "cat.flac", 5.0, 110, "A cat meows three times", background=-62.0, echo=(0.4, -18.0)),
    _one(COW, "cow.flac", 5.0, 111, "A cow moos twice", background=-62.0, echo=(0.5, -18.0)),
    _one(RAIN, "rain.flac", 4.0, 112, "Steady rain", background=None, echo=None),
    _one(
        HELICOPTER,
        "helicopter.flac",
        4.0,
        113,
        "A helicopter passes",
        peak=-8.0,
        background=None,
        echo=None,
    ),
    _one(CHAINSAW, "chainsaw.flac", 4.0, 114, "A chainsaw idles and revs", echo=(0.6, -18.0)),
    Clip(
        "synthetic_cuckoo_over_rain.ogg",
        (Part(CUCKOO, 0.0, 7.0, -7.0, pan=-0.4), Part(RAIN, 0.0, 7.0, -7.0, pan=0.2)),
        7.0,
        115,
        "A cuckoo calls through light rain (two sounds at once, stereo)",
        background=QUIET,
        echo=WOODS,
        sample_rate=44100,
        channels=2,
    ),
    Clip(
        "synthetic_heath_at_dusk.ogg",
        (
            Part(CUCKOO, 0.5, 8.5, -7.0),
            Part(NIGHTJAR, 10.2, 9.3, -8.0),
            Part(BARN_OWL, 20.2, 5.8, -6.0),
        ),
        26.0,
        116,
        "An evening in three windows: a cuckoo, then a nightjar, then a barn owl",
        background=-54.0,
        echo=WOODS,
        sample_rate=48000,
    ),
)


def _panned(sound: Signal, pan: float, channels: int, rate: int) -> list[Signal]:
    """Copies of a sound for each channel, with the level and delay of its place (-1 to 1)."""
    if channels == 1:
        return [sound]
    left, right = np.cos((pan + 1.0) * np.pi / 4.0), np.sin((pan + 1.0) * np.pi / 4.0)
    delay = samples(0.0005 * abs(pan), rate)
    late = np.concatenate([np.zeros(delay), sound])[: len(sound)]
    return [left * (late if pan > 0 else sound), right * (sound if pan > 0 else late)]


def render(clip: Clip) -> NDArray[np.int16]:
    """The clip as 16-bit samples of shape (frames, channels)."""
    rate, n = clip.sample_rate, samples(clip.seconds, clip.sample_rate)
    mix = np.zeros((clip.channels, n))
    for number, part in enumerate(clip.parts):
        rng = np.random.RandomState([clip.seed, number])
        heard = normalise(part.sound.call(rng, rate, part.seconds), part.peak)
        for channel, copy in enumerate(_panned(heard, part.pan, clip.channels, rate)):
            place(mix[channel], copy, part.start, rate)
    for channel in range(clip.channels):
        rng = np.random.RandomState([clip.seed, 1000 + channel])
        if clip.echo is not None:
            seconds, level = clip.echo
            mix[channel] = reverberate(rng, mix[channel], rate, seconds=seconds, level=level)
        if clip.background is not None:
            mix[channel] += outdoors(rng, n, rate, clip.background)
    mix *= min(1.0, decibels(-1.0) / float(np.max(np.abs(mix))))
    return np.rint(mix.T * 32767.0).astype(np.int16)


def write(clip: Clip, path: Path) -> None:
    """Renders the clip and writes it in the format of its suffix."""
    pcm = render(clip)
    subtype = "VORBIS" if clip.lossy else "PCM_16"
    compress = None if path.suffix.lower() == ".wav" else VORBIS_COMPRESSION if clip.lossy else 1.0
    with soundfile.SoundFile(
        path, "w", clip.sample_rate, clip.channels, subtype, compression_level=compress
    ) as file:
        # In blocks: libsndfile's Vorbis encoder takes stack memory for all it is given at once.
        for start in range(0, len(pcm), BLOCK):
            file.write(pcm[start : start + BLOCK])
    if clip.lossy:
        path.write_bytes(ogg.with_serial(path.read_bytes(), clip.seed))


def table_row(clip: Clip) -> dict[str, str]:
    """The clip's line of ``samples.csv``."""
    sounds = [part.sound for part in clip.parts]
    return {
        "file": clip.file,
        "labels": "; ".join(s.label for s in sounds),
        "scientific_names": "; ".join(s.scientific_name for s in sounds if s.scientific_name),
        "groups": "; ".join(s.group for s in sounds),
        "spans": "; ".join(f"{p.start:g}-{p.start + p.seconds:g}" for p in clip.parts),
        "seconds": f"{clip.seconds:g}",
        "sample_rate": str(clip.sample_rate),
        "channels": str(clip.channels),
        "description": clip.description,
        "how_made": " | ".join(f"{s.label}: {s.method}" for s in sounds),
        "source_of_description": " | ".join(dict.fromkeys(s.source for s in sounds)),
        "seed": str(clip.seed),
        "synthetic": "yes",
        "license": "CC0-1.0",
    }
