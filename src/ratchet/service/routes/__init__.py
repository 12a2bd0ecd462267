"""The routes of API v1, a file for each kind of thing."""

from __future__ import annotations

from ratchet.service.routes import audit, cycles, datasets, live, optimizations, targets, webhooks
from ratchet.service.routes.common import PREFIX

ROUTERS = (
    optimizations.router,
    live.router,
    live.sockets,
    datasets.router,
    targets.router,
    audit.router,
    webhooks.router,
    cycles.router,
)

__all__ = ["PREFIX", "ROUTERS"]
