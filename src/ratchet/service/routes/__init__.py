"""The routes of API v1, a file for each kind of thing."""

from __future__ import annotations

from ratchet.service.routes import audit, datasets, live, optimizations, targets, versions
from ratchet.service.routes.common import PREFIX

ROUTERS = (
    optimizations.router,
    live.router,
    live.sockets,
    datasets.router,
    targets.router,
    versions.router,
    audit.router,
)

__all__ = ["PREFIX", "ROUTERS"]
