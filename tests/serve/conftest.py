"""One service for all tests that need no settings of their own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from served import Running, serving

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "multipart")
collect_ignore_glob = [] if all(map(find_spec, _NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    with serving() as running:
        yield running
