"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient

from ratchet.core.access import Role
from ratchet.service.app import create_app
from ratchet.testing.service import Clock, House, RecordingQueue, actor, desk_in


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    queue, clock = RecordingQueue(), Clock()
    desk = desk_in(tmp_path / "home", queue=queue, clock=clock)
    keys = {
        (tenant, role): desk.keys.create(actor(), name=role, tenant=tenant, role=role)[1]
        for tenant in ("default", "other")
        for role in get_args(Role)
    }
    with TestClient(create_app(desk), raise_server_exceptions=False) as client:
        yield House(desk, queue, clock, client, keys)
    desk.close()
