"""Long recordings need no more memory than short ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

RATE = 22_050

# On Linux ru_maxrss of a new process starts at its parent's peak, so that it shows nothing here.
MEASURE = """
import resource, sys
from NatureLM.audio import iter_windows

def peak_mb():
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

for path in sys.argv[1:]:
    end = 0.0
    for window in iter_windows(path, window_seconds=10.0, hop_seconds=5.0, warn=print):
        end = window.end
    print(end, peak_mb())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through POSIX")
def test_an_hour_takes_no_more_than_a_minute(tmp_path: Path, noise: Any) -> None:
    minute, hour = tmp_path / "minute.flac", tmp_path / "hour.flac"
    second = noise(RATE)[:, 0] * 0.1
    for path, seconds in ((minute, 60), (hour, 3600)):
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(seconds):
                file.write(second)
    # One process, short file first: the peak may rise by what the long file needs more.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, minute, hour], capture_output=True, text=True, check=True
    )
    (end, short_mb), (long_end, long_mb) = (map(float, x.split()) for x in done.stdout.splitlines())
    assert (end, long_end) == (60, 3600)
    print(f"peak memory: {short_mb:.1f} MB for a minute, {long_mb:.1f} MB for an hour")
    assert long_mb - short_mb < 50
