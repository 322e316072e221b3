"""The description of the routes is true, and nothing that follows or breaks it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from served import Running

PROGRAM = shutil.which("schemathesis")


def test_every_route_is_described(service: Running) -> None:
    told = service.get("/openapi.json").json()
    for path, methods in told["paths"].items():
        for method, one in methods.items():
            assert one["description"], path
            assert set(one["responses"]) == {"200", "4XX", "5XX"}, path
            if method == "post":
                (content,) = one["requestBody"]["content"].values()
                assert content["schema"], path
    assert told["info"]["summary"]
    assert "#/$defs/" not in str(told), "references lead somewhere"


def test_the_page_of_routes_asks_nobody_else(service: Running) -> None:
    page = service.get("/docs").text + service.get("/docs/docs.js").text
    assert "://" not in page
    assert service.get("/docs/other.js").status_code == 404
    assert service.get("/docs/..%2fserver.py").status_code == 404


@pytest.mark.slow
@pytest.mark.skipif(
    PROGRAM is None, reason="schemathesis is not installed (pip install schemathesis)"
)
def test_2000_requests_of_schemathesis_find_no_fault(service: Running, tmp_path: Path) -> None:
    assert PROGRAM is not None
    routes = len(service.get("/openapi.json").json()["paths"])
    command = [
        PROGRAM, "run", f"{service.address}/openapi.json",
        "--checks", "not_a_server_error",
        "--max-examples", str(2000 // routes + 1),
        "--request-timeout", "60",
        "--workers", "2",
        "--seed", "1",
        "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:]
