"""Starts commands quickly: their processes are copies of one that has imported torch already.

Reads one job a line, JSON with `argv`, `folder`, `stdout` and `stderr`; prints the process id and,
when the process is over, its exit code and the seconds that it computed. Of the package nothing is
imported before there is a job.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys

LARGE = ["accelerate", "soundfile", "transformers.models.llama.modeling_llama"]
LARGE += ["transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"]


def serve() -> str:
    """Wait for jobs; in the process of a job, the name of the command that it is to run."""
    for name in LARGE:
        importlib.import_module(name)
    gc.freeze()  # a process looks for no garbage in what it never made
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            os.chdir(job["folder"])
            for name, number in (("stdout", 1), ("stderr", 2)):
                os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = job["argv"]
            return str(sys.argv[0])
        print(process, flush=True)
        _, status, used = os.wait4(process, 0)
        print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
    return ""


sys.path[0] = ""  # as with python -c
command = serve()
if command:
    from NatureLM.cli import main

    {"naturelm": main.naturelm, "beans": main.beans}[command]()
