"""A season of field work, made: three sites, a month, and what is true of every recording.

    python benchmarks/field_archive.py FOLDER [--files 2000] [--seed 0] [--without-day]

Each site has two cards, and the AudioMoths of all sites wrote the same file names. One site is in
Europe/Berlin, where summer time ends in the middle: one of its recorders keeps summer time in its
header, the other follows the clocks of the place and says no zone. At another the clocks are set to
UTC, the third is at UTC+10 all year. One file in a hundred is broken. One FLAC lasts 24 hours at
48 kHz, from summer into winter time, with a call at the beginning of each hour.

FOLDER gets `deployments.csv`, which the commands are given, and `truth.csv`, which they are not.
The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import csv
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FIRST_DAY, DAYS = datetime(2024, 10, 12), 30
DAY_BEGINS, DAY_SECONDS, DAY_RATE = datetime(2024, 10, 26, 18), 86_400, 48_000
"""Of the recording of a day: by the clocks of Berlin, which are set back nine hours later."""
TRUTH, DEPLOYMENTS = "truth.csv", "deployments.csv"
DEPLOYMENT_COLUMNS = (
    *("site", "latitude", "longitude", "from", "to"),
    *("zone", "clock", "recorder", "folder", "habitat"),
)
CALLERS = ("common_cuckoo", "european_nightjar", "barn_owl", "american_toad", "gray_wolf", "rain")
BROKEN = ("empty", "zeros", "text", "header", "cut")
Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Site:
    """A place: degrees, and its zone as the table of deployments has it."""

    name: str
    latitude: float
    longitude: float
    zone: str
    habitat: str


@dataclass(frozen=True)
class Card:
    """What a recorder wrote.

    recorder: its serial number
    clock: hours from UTC that it is set to; None where it follows the clocks of the place
    tells: where its zone is told: "comment", "name", "table", or "" for the zone of the place
    suffixes: of its files, in turn
    """

    site: Site
    folder: str
    recorder: str
    clock: int | None
    tells: str
    suffixes: tuple[str, ...]


HEATH = Site("Heath", 52.43, 13.65, "Europe/Berlin", "heath")
SAWGRASS = Site("Sawgrass", 25.39, -80.68, "America/New_York", "marsh")
RANGE = Site("Range", -27.45, 152.95, "UTC+10", "open forest")
CARDS = (
    Card(HEATH, "heath/card1", "24F319055FDF2F5B", 2, "comment", (".WAV",)),
    Card(HEATH, "heath/card2", "S4A01234", None, "", (".wav", ".flac")),
    Card(SAWGRASS, "sawgrass/card1", "24F319055FDF2A10", 0, "comment", (".WAV",)),
    Card(SAWGRASS, "sawgrass/card2", "S4A05678", 0, "table", (".wav", ".flac", ".mp3")),
    Card(RANGE, "range/card1", "24F319055FDF1C07", 10, "comment", (".WAV",)),
    Card(RANGE, "range/card2", "", 10, "name", (".flac", ".mp3")),
)


@dataclass(frozen=True)
class Truth:
    """What is true of a recording.

    path: from the archive's folder on, with slashes
    begins_utc: ISO 8601; "" where nobody can know it, in the hour that comes twice
    zone: of local times: a name of the database, or an offset that its recorder tells
    begins_local: ISO 8601 by the clocks of that zone
    seconds, sample_rate: of its sound
    broken: how; "" for a good one
    calls: "Barn Owl 2.5-7.7", several with "; "
    """

    path: str
    site: str
    recorder: str
    begins_utc: str
    zone: str
    begins_local: str
    seconds: float
    sample_rate: int
    broken: str = ""
    calls: str = ""


# Sound


@cache
def _call(name: str, rate: int) -> tuple[str, Samples]:
    """The English name of a caller, and its sound."""
    with open(ASSETS / "samples.csv", encoding="utf-8", newline="") as file:
        label = next(
            r["labels"] for r in csv.DictReader(file) if r["file"].endswith(f"_{name}.flac")
        )
    wave, given = soundfile.read(ASSETS / f"synthetic_{name}.flac", dtype="float32")
    if given != rate:
        wave = soxr.resample(wave, given, rate)
    return label, (wave * 30_000).clip(-32_768, 32_767).astype(np.int16)


@cache
def _noise(rate: int) -> Samples:
    rng = np.random.default_rng(1)
    return (20 * rng.standard_normal(80 * rate)).astype(np.int16)


def clip(rng: np.random.Generator, seconds: float, rate: int) -> tuple[Samples, str]:
    """Noise with at most one call somewhere; and which, as `Truth.calls` has it."""
    length = round(seconds * rate)
    samples = np.roll(_noise(rate), int(rng.integers(80 * rate)))[:length]
    if rng.random() < 0.25:
        return samples, ""
    label, call = _call(str(rng.choice(CALLERS)), rate)
    call = call[:length]
    at = int(rng.integers(length - len(call) + 1))
    samples[at : at + len(call)] += call
    return samples, f"{label} {at / rate:.3f}-{(at + len(call)) / rate:.3f}"


# Files


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def audiomoth_wav(samples: Samples, rate: int, comment: str, recorder: str) -> bytes:
    """A WAV as AudioMoths write it: the comment stands before the sound."""
    form = _chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16))
    texts = _chunk(b"ICMT", comment.encode().ljust(384, b"\0"))
    texts += _chunk(b"IART", f"AudioMoth {recorder}".encode().ljust(32, b"\0"))
    sound = _chunk(b"data", samples.tobytes())
    content = b"WAVE" + form + _chunk(b"LIST", b"INFO" + texts) + sound
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _comment(shown: datetime, hours: int, recorder: str) -> str:
    zone = f"UTC{hours:+d}" if hours else "UTC"
    return (
        f"Recorded at {shown:%H:%M:%S %d/%m/%Y} ({zone}) by AudioMoth {recorder} at medium gain "
        "while battery was 4.2V and temperature was 11.4C."
    )


def _write(path: Path, card: Card, shown: datetime, samples: Samples, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if card.tells == "comment":
        comment = _comment(shown, card.clock or 0, card.recorder)
        path.write_bytes(audiomoth_wav(samples, rate, comment, card.recorder))
    else:
        soundfile.write(path, samples, rate)


def _break(path: Path, how: str) -> None:
    """Spoil a file, as cards, batteries and copies do; "cut" ends it in the middle."""
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "zeros": bytes(len(whole)),
            "text": b"The card was full. Please call the warden.\n" * 40,
            "header": whole[:44],
            "cut": whole[: len(whole) // 2],
        }[how]
    )


def _name(card: Card, shown: datetime, suffix: str) -> str:
    if card.tells == "name":
        return f"{shown:%Y%m%dT%H%M%S}+{card.clock:02d}00_REC{suffix}"
    prefix = "" if card.tells == "comment" else f"{card.recorder}_"
    return f"{prefix}{shown:%Y%m%d_%H%M%S}{suffix}"


# Times


def moment(card: Card, shown: datetime) -> tuple[datetime | None, str, datetime]:
    """UTC (None where nobody can know it), zone and local time of what a recorder's clock shows."""
    if card.clock is None:
        zone = ZoneInfo(card.site.zone)
        first, second = (shown.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() != second.utcoffset():
            return None, "", shown
        return first.astimezone(timezone.utc), card.site.zone, first
    utc = (shown - timedelta(hours=card.clock)).replace(tzinfo=timezone.utc)
    if card.tells in ("comment", "name") and card.clock:
        offset = timezone(timedelta(hours=card.clock))
        here = utc.astimezone(_zone(card.site.zone))
        # Where the place has that offset, its zone is known by its own name.
        if here.utcoffset() == offset.utcoffset(None):
            return utc, card.site.zone, here
        return utc, f"UTC{card.clock:+03d}:00", utc.astimezone(offset)
    return utc, card.site.zone, utc.astimezone(_zone(card.site.zone))


def _zone(text: str) -> ZoneInfo | timezone:
    return timezone(timedelta(hours=10)) if text == RANGE.zone else ZoneInfo(text)


def schedule(count: int) -> list[datetime]:
    """When recorders were set to begin, by their clocks: all through the month and the day."""
    hours = timedelta(hours=7, minutes=13)
    return [
        FIRST_DAY + timedelta(days=number * DAYS // count) + number * hours % timedelta(days=1)
        for number in range(count)
    ]


CHANGES = tuple(
    datetime(2024, 10, 27, hour, minute, second)
    for hour, minute, second in ((1, 59, 52), (2, 30, 0), (2, 59, 55), (3, 0, 5))
)
"""Times about the end of summer time: into the hour that comes twice, in it, out of it, after."""


def _times(count: int, most: int, card: Card) -> list[datetime]:
    """The times of a card of so many recordings; a recorder on local time has the change, too."""
    times = schedule(most)[:count]
    if card.clock is None:
        times = [*CHANGES, *(one for one in times if one not in CHANGES)][:count]
    return sorted(times)


# All


def make(
    folder: Path,
    files: int = 2000,
    seed: int = 0,
    *,
    day: bool = True,
    broken: int | None = None,
) -> list[Truth]:
    """Make the archive; what is true of it, which `truth.csv` in the folder says, too.

    broken: how many are; None for one in a hundred, and at least one of each kind
    """
    rng = np.random.default_rng(seed)
    truths: list[Truth] = []
    left = files - day
    most = -(-left // len(CARDS))
    for number, card in enumerate(CARDS):
        count = left // len(CARDS) + (number < left % len(CARDS))
        for place, shown in enumerate(_times(count, most, card)):
            truths.append(_recording(folder, card, shown, place, rng))
    if day:
        truths.append(_day(folder, seed))
    count = max(len(BROKEN), round(files / 100)) if broken is None else broken
    truths = _with_broken(folder, truths, count, rng)
    _write_tables(folder, truths)
    return truths


def _recording(
    folder: Path, card: Card, shown: datetime, place: int, rng: np.random.Generator
) -> Truth:
    """One short recording."""
    rate = 48_000 if place % 5 == 2 else 16_000
    suffix = card.suffixes[place % len(card.suffixes)]
    is_change = card.clock is None and shown in CHANGES
    seconds = rng.uniform(40, 75) if place % 12 == 5 else rng.uniform(5, 15)
    samples, calls = clip(rng, 14.8 if is_change else round(seconds, 1), rate)
    if place % 60 == 40:
        samples, calls = np.zeros_like(samples), ""
    path = folder / card.folder / _name(card, shown, suffix)
    _write(path, card, shown, samples, rate)
    return _truth(folder, path, card, shown, calls)


def _truth(folder: Path, path: Path, card: Card, shown: datetime, calls: str) -> Truth:
    utc, zone, local = moment(card, shown)
    info = soundfile.info(path)
    return Truth(
        path=path.relative_to(folder).as_posix(),
        site=card.site.name,
        recorder=card.recorder,
        begins_utc="" if utc is None else f"{utc:%Y-%m-%dT%H:%M:%S}Z",
        zone=zone,
        begins_local=local.isoformat(),
        seconds=info.frames / info.samplerate,
        sample_rate=info.samplerate,
        calls=calls,
    )


def _day(folder: Path, seed: int) -> Truth:
    """The recording of a day, minute by minute; one that is there is not made anew."""
    card, rng = CARDS[1], np.random.default_rng(seed)
    path = folder / card.folder / _name(card, DAY_BEGINS, ".flac")
    minute = 60 * DAY_RATE
    noise = np.round(0.8 * rng.standard_normal(2 * minute)).astype(np.int16)
    calls = [_call(CALLERS[hour % 5], DAY_RATE) for hour in range(DAY_SECONDS // 3600)]
    heard = [
        f"{label} {3600 * hour + 1}-{3600 * hour + 1 + len(call) / DAY_RATE:.3f}"
        for hour, (label, call) in enumerate(calls)
    ]
    if not path.is_file():
        with soundfile.SoundFile(path, "w", DAY_RATE, 1, "PCM_16", compression_level=0.0) as file:
            for number in range(DAY_SECONDS // 60):
                at = int(rng.integers(minute))
                samples = noise[at : at + minute].copy()
                if number % 60 == 0:
                    call = calls[number // 60][1]
                    samples[DAY_RATE : DAY_RATE + len(call)] += call
                file.write(samples)
    return _truth(folder, path, card, DAY_BEGINS, "; ".join(heard))


def _with_broken(
    folder: Path, truths: Sequence[Truth], count: int, rng: np.random.Generator
) -> list[Truth]:
    """Some of the short ones broken, of each kind alike many."""
    short = [
        place
        for place, one in enumerate(truths)
        if one.begins_utc and one.seconds < DAY_SECONDS and not one.path.endswith(".mp3")
    ]
    chosen = rng.choice(len(short), min(count, len(short) // 2), replace=False)
    found = list(truths)
    for number, place in enumerate(sorted(short[int(one)] for one in chosen)):
        how = BROKEN[number % len(BROKEN)]
        _break(folder / truths[place].path, how)
        found[place] = replace(found[place], broken=how, calls="")
    return found


def _write_tables(folder: Path, truths: Sequence[Truth]) -> None:
    names = [one.name for one in fields(Truth)]
    with open(folder / TRUTH, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(map(asdict, truths))
    last = FIRST_DAY + timedelta(days=DAYS + 1)
    with open(folder / DEPLOYMENTS, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(DEPLOYMENT_COLUMNS)
        for card in CARDS:
            site = card.site
            clock = "UTC" if card.tells == "table" else ""
            place = (site.name, site.latitude, site.longitude)
            known_by = (card.recorder, "" if card.recorder else card.folder)
            days = (f"{FIRST_DAY - timedelta(days=1):%Y-%m-%d}", f"{last:%Y-%m-%d}")
            rows.writerow([*place, *days, site.zone, clock, *known_by, site.habitat])


def read(folder: Path) -> Iterator[Truth]:
    """What `truth.csv` says."""
    with open(folder / TRUTH, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            values = {**row, "seconds": float(row["seconds"])}
            yield Truth(**{**values, "sample_rate": int(row["sample_rate"])})  # type: ignore[arg-type]


def main() -> None:
    """Make an archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-day", action="store_true", help="no recording of 24 hours")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    truths = make(options.folder, options.files, options.seed, day=not options.without_day)
    size = sum((options.folder / one.path).stat().st_size for one in truths)
    broken = sum(bool(one.broken) for one in truths)
    print(f"{len(truths)} recordings, {broken} of them broken, {size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
