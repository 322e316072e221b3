"""The sample clips: reproducible, complete, and with the features that the species are known by."""

from __future__ import annotations

import csv
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
sys.path.insert(0, str(ROOT / "scripts"))

import make_assets  # noqa: E402
from assets_synthesis import birds, dsp, frogs, mammals, ogg, surroundings  # noqa: E402
from assets_synthesis.clips import CLIPS, Clip, Part, render, write  # noqa: E402

CUCKOO = next(clip for clip in CLIPS if clip.file == "synthetic_common_cuckoo.flac").parts[0].sound
SHORT = tuple(
    Clip(f"synthetic_short.{suffix}", (Part(CUCKOO, 0.0, 1.6, -6.0, pan),), 1.6, seed, "a cuckoo",
         background=-50.0, echo=(0.3, -16.0), sample_rate=rate, channels=channels)
    for seed, (suffix, rate, channels, pan) in enumerate(
        [("flac", 16000, 1, 0.0), ("WAV", 22050, 2, 0.5), ("ogg", 44100, 2, -0.5)]
    )
)  # fmt: skip
"""A clip of each format, quickly made."""
RATE = 16000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the short clips, for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_assets, "CLIPS", SHORT)
        assert make_assets.main(["--output-path", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the short clips, which is all that the script knows of during the test."""
    monkeypatch.setattr(make_assets, "CLIPS", SHORT)
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def check(folder: Path) -> int:
    return make_assets.main(["--check", "--output-path", str(folder)])


@pytest.mark.parametrize("file", ["synthetic_dog.WAV", "synthetic_barn_owl.flac"])
def test_a_committed_clip_is_what_the_script_makes(file: str, tmp_path: Path) -> None:
    (clip,) = [clip for clip in CLIPS if clip.file == file]
    write(clip, tmp_path / file)
    assert make_assets.difference(clip, ASSETS / file, tmp_path / file) is None


@pytest.mark.slow
def test_committed_clips_are_what_the_script_makes() -> None:
    assert make_assets.check(ASSETS) == []


def test_the_same_run_gives_the_same_bytes(folder: Path, tmp_path_factory) -> None:
    again = tmp_path_factory.mktemp("again")
    make_assets.make(again)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_check_accepts_what_make_wrote(folder: Path, capsys) -> None:
    assert check(folder) == 0
    assert "are as this script makes them" in capsys.readouterr().out


def _louder(path: Path) -> None:
    sound, rate = soundfile.read(path)
    soundfile.write(path, 1.2 * sound, rate)


def _slower(path: Path) -> None:
    sound, rate = soundfile.read(path)
    soundfile.write(path, sound, rate // 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_louder, "is not what this script makes"),
        (_slower, "frames of"),
        (lambda path: path.write_bytes(b"no sound"), "cannot be read"),
        (Path.unlink, "is missing"),
    ],
    ids=["louder", "slower", "garbage", "missing"],
)
def test_check_names_a_clip_that_differs(folder: Path, spoil, message, capsys) -> None:
    for clip in SHORT:
        spoil(folder / clip.file)
    assert check(folder) == 1
    said = capsys.readouterr().err
    for clip, line in zip(SHORT, said.splitlines(), strict=False):
        assert clip.file in line
        assert message in line
    assert "scripts/make_assets.py" in said


def test_check_names_other_files_and_a_changed_table(folder: Path, capsys) -> None:
    (folder / "synthetic_dragon.flac").write_bytes(b"")
    with (folder / "samples.csv").open("a") as table:
        table.write("more\n")
    assert check(folder) == 1
    said = capsys.readouterr().err
    assert "synthetic_dragon.flac: is no clip of this script" in said
    assert "samples.csv: is not the table" in said


def test_table_and_readme_name_every_clip() -> None:
    with (ASSETS / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    readme = (ASSETS / "README.md").read_text()
    assert (ASSETS / "samples.csv").read_text(encoding="utf-8") == make_assets.table()
    assert {row["file"] for row in rows} == {path.name for path in ASSETS.glob("synthetic_*")}
    for row in rows:
        assert row["synthetic"] == "yes"
        assert row["license"] == "CC0-1.0"
        assert row["how_made"]
        assert row["source_of_description"]
        assert f"`{row['file']}`" in readme
        info = soundfile.info(ASSETS / row["file"])
        assert (info.samplerate, info.channels) == (int(row["sample_rate"]), int(row["channels"]))
        assert info.duration == pytest.approx(float(row["seconds"]), abs=0.01)
    assert len({row["seed"] for row in rows}) == len(rows)


def test_the_folder_is_small_and_varied() -> None:
    paths = list(ASSETS.glob("synthetic_*"))
    infos = [soundfile.info(path) for path in paths]
    assert sum(path.stat().st_size for path in paths) < 1.6e6
    assert {path.suffix for path in paths} == {".flac", ".WAV", ".ogg"}
    assert {info.channels for info in infos} == {1, 2}
    assert {info.samplerate for info in infos} == {16000, 44100, 48000}
    assert max(info.duration for info in infos) > 20.0


def test_clips_are_neither_clipped_nor_faint() -> None:
    for path in ASSETS.glob("synthetic_*"):
        sound, _ = soundfile.read(path)
        assert 0.05 < np.abs(sound).max() < 0.99, path.name


# What the sounds are known by -------------------------------------------------------------------


def rng() -> np.random.RandomState:
    return np.random.RandomState(7)


def spectrum(sound: dsp.Signal) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies (Hz) and power of a windowed signal."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * len(sound))) ** 2
    return np.fft.rfftfreq(8 * len(sound), 1.0 / RATE), power


def peak(sound: dsp.Signal, low: float, high: float) -> float:
    """Frequency (Hz) of the strongest part between ``low`` and ``high``."""
    hertz, power = spectrum(sound)
    inside = (hertz >= low) & (hertz <= high)
    return float(hertz[inside][np.argmax(power[inside])])


def pulse_rate(sound: dsp.Signal, low: float, high: float) -> float:
    """Strongest rate (Hz) in the sound's envelope between ``low`` and ``high``."""
    power = sound**2
    return peak(power - power.mean(), low, high)


def test_cuckoo_falls_by_a_minor_third() -> None:
    call = birds.common_cuckoo(rng(), RATE, 2.0)
    active = np.flatnonzero(np.abs(call) > 0.05)
    start, end = active[0], active[-1]
    first = peak(call[start : start + int(0.17 * RATE)], 300.0, 1200.0)
    second = peak(call[end - int(0.2 * RATE) : end], 300.0, 1200.0)
    assert 2.5 < 12.0 * np.log2(first / second) < 4.0
    assert 400.0 < second < first < 850.0


def test_wolf_howls_between_150_and_780_hertz() -> None:
    howl = mammals.gray_wolf(rng(), RATE, 7.0)
    for start in np.arange(0.8, 5.5, 0.25):
        piece = howl[int(start * RATE) :][: RATE // 4]
        assert 150.0 < peak(piece, 20.0, 7900.0) < 780.0


def test_toad_trills_at_18_to_59_pulses_a_second() -> None:
    trill = frogs.american_toad(rng(), RATE, 6.0)[2 * RATE : 4 * RATE]
    assert 18.0 < pulse_rate(trill, 10.0, 200.0) < 59.0
    assert 1400.0 < peak(trill, 100.0, 7900.0) < 2200.0


def test_nightjar_churrs_at_24_to_29_pulses_a_second() -> None:
    churr = birds.european_nightjar(rng(), RATE, 4.0)[RATE // 2 : 2 * RATE]
    assert 24.0 < pulse_rate(churr, 10.0, 60.0) < 29.0


def test_green_treefrog_has_two_bands_of_energy() -> None:
    quonk = frogs.green_treefrog(rng(), RATE, 3.0)
    hertz, power = spectrum(quonk)

    def level(low: float, high: float) -> float:
        return 10.0 * np.log10(power[(hertz >= low) & (hertz <= high)].max())

    valley = level(1400.0, 2100.0)
    assert level(700.0, 1100.0) > valley + 10.0
    assert level(2500.0, 3400.0) > valley + 10.0


def test_squirrel_treefrog_rasps_at_about_110_pulses_a_second() -> None:
    rasp = frogs.squirrel_treefrog(rng(), RATE, 1.0)
    assert 95.0 < pulse_rate(rasp, 50.0, 180.0) < 125.0


def test_barn_owl_is_noise_and_rain_is_flat_noise() -> None:
    def flatness(sound: dsp.Signal, low: float, high: float) -> float:
        hertz, power = spectrum(sound)
        inside = power[(hertz >= low) & (hertz <= high)]
        return float(np.exp(np.mean(np.log(inside))) / np.mean(inside))

    screech = birds.barn_owl(rng(), RATE, 2.0)[int(0.7 * RATE) :][: RATE // 2]
    whistle = birds.common_cuckoo(rng(), RATE, 2.0)[RATE // 2 :][: RATE // 2]
    assert 2700.0 < peak(screech, 100.0, 7900.0) < 5600.0
    assert flatness(screech, 3000.0, 5500.0) > 0.2 > 10.0 * flatness(whistle, 300.0, 5500.0)
    assert flatness(surroundings.rain(rng(), RATE, 2.0), 300.0, 7000.0) > 0.2


def test_stereo_places_a_sound_left_or_right() -> None:
    for clip in SHORT[1:]:
        pcm = render(clip).astype(float)
        assert pcm.shape == (round(clip.seconds * clip.sample_rate), 2)
        left, right = pcm.std(axis=0)
        assert (right > 1.2 * left) if clip.parts[0].pan > 0 else (left > 1.2 * right)


# Ogg pages --------------------------------------------------------------------------------------


def test_serial_number_changes_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "clip.ogg"
    soundfile.write(path, 0.3 * np.sin(np.arange(RATE) / 5.0), RATE)
    before = path.read_bytes()
    sound, _ = soundfile.read(path)
    own = struct.unpack_from("<I", before, 14)[0]
    assert ogg.with_serial(before, own) == before  # our checksums are the encoder's
    path.write_bytes(ogg.with_serial(before, own ^ 0xFFFFFFFF))
    after, _ = soundfile.read(path)
    np.testing.assert_array_equal(after, sound)


def test_what_is_no_ogg_is_refused() -> None:
    with pytest.raises(ValueError, match="no Ogg page at byte 0"):
        ogg.with_serial(b"RIFFxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 1)


def test_write_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    write(SHORT[0], tmp_path / SHORT[0].file)
    assert [path.name for path in tmp_path.iterdir()] == [SHORT[0].file]
