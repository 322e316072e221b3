"""Makes a small memory card to practise on: recordings as two AudioMoths would have made them.

    python scripts/make_card.py card
    python scripts/make_card.py card --nights 30 --seed 7

The sounds are those of ``assets/``, nearer and farther, over hiss. So it is known what can be
heard: ``what-is-in-it.csv`` beside the folder says so, as nobody does of a real card. The last
recording is broken, as when a battery dies.
"""

from __future__ import annotations

import argparse
import csv
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

ASSETS = Path(__file__).resolve().parents[1] / "assets"
RATE = 16_000
WINDOW_SECONDS = 10
WINDOWS = 2  # in a recording
FIRST_NIGHT = datetime(2024, 5, 10)
HOURS = (3.5, 19.5, 20.5, 21.5)  # UTC
TRUTH = "what-is-in-it.csv"
COMMENT_BYTES = 384
Sound = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Site:
    """A place with a recorder.

    night, dawn: sounds of assets/ that may be heard there, without prefix and suffix; an empty name
        is nothing but hiss
    """

    folder: str
    recorder: str
    night: tuple[str, ...]
    dawn: tuple[str, ...]


SITES = (
    Site(
        "heath",
        "24A04F085FDF2796",
        ("european_nightjar", "european_nightjar", "barn_owl", "helicopter", "dog", ""),
        ("common_cuckoo", "common_cuckoo", "rooster", "rain"),
    ),
    Site(
        "pond",
        "24A04F085FDF279B",
        ("american_toad", "squirrel_treefrog", "american_toad", "dog", "rain", ""),
        ("american_toad", "cow", "rooster", "common_cuckoo"),
    ),
)


def call(name: str) -> Sound:
    """A call of assets/, with its highest peak at 1."""
    path = next(ASSETS.glob(f"synthetic_{name}.*"))
    sound, rate = soundfile.read(path, dtype="float64")
    if rate != RATE:
        raise SystemExit(f"{path}: has {rate} Hz, and the card is made of sounds at {RATE} Hz")
    return np.asarray(sound / np.abs(sound).max())


def window(name: str, random: np.random.Generator) -> Sound:
    """Ten seconds of hiss with a call somewhere in it, near or far."""
    heard = random.normal(0.0, 0.004, RATE * WINDOW_SECONDS)
    if name:
        sound = call(name) * 10 ** random.uniform(-2.2, -0.3)
        begin = int(random.integers(0, len(heard) - len(sound)))
        heard[begin : begin + len(sound)] += sound
    return heard


def wav(sound: Sound, begun: datetime, recorder: str) -> bytes:
    """A WAV as an AudioMoth writes it: the comment stands before the sound."""
    comment = (
        f"Recorded at {begun:%H:%M:%S %d/%m/%Y} (UTC) by AudioMoth {recorder} at medium gain "
        "while battery was 4.2V and temperature was 11.5C."
    )
    info = b"INFO" + chunk(b"ICMT", comment.encode().ljust(COMMENT_BYTES, b"\0"))
    info += chunk(b"IART", f"AudioMoth {recorder}".encode())
    samples = np.round(np.clip(sound, -1.0, 1.0) * 32767).astype("<i2").tobytes()
    header = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    parts = chunk(b"fmt ", header) + chunk(b"LIST", info) + chunk(b"data", samples)
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a RIFF file, padded to an even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def make(folder: Path, nights: int, seed: int) -> Iterator[tuple[str, int, int, str]]:
    """Write the card; gives what is in each window: recording, start, end (seconds), sound."""
    random = np.random.default_rng(seed)
    times = [
        FIRST_NIGHT + timedelta(days=night, hours=hour) for night in range(nights) for hour in HOURS
    ]
    for site in SITES:
        (folder / site.folder).mkdir(parents=True, exist_ok=True)
        for begun in times:
            path = folder / site.folder / f"{begun:%Y%m%d_%H%M%S}.WAV"
            choices = site.dawn if begun.hour < 12 else site.night
            names = [str(random.choice(choices)) for _ in range(WINDOWS)]
            content = wav(
                np.concatenate([window(name, random) for name in names]), begun, site.recorder
            )
            is_broken = (site, begun) == (SITES[-1], times[-1])
            path.write_bytes(content[:200] if is_broken else content)
            for number, name in enumerate([] if is_broken else names):
                start = number * WINDOW_SECONDS
                yield path.as_posix(), start, start + WINDOW_SECONDS, name


def main() -> None:
    """Make the card and the table of what is in it."""
    parser = argparse.ArgumentParser(description="Make a small memory card to practise on.")
    parser.add_argument("folder", type=Path, help="folder that stands for the card")
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows = list(make(given.folder, given.nights, given.seed))
    truth = given.folder.parent / TRUTH
    with truth.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("recording", "start", "end", "sound"), *rows])
    count = sum(1 for _ in given.folder.rglob("*.WAV"))
    print(f"{count} recordings in {given.folder}, and what can be heard in {truth}")


if __name__ == "__main__":
    main()
