"""The routes of API v1, a file for each kind of thing."""

from __future__ import annotations

from ratchet.service.routes import (
    algorithms,
    analytics,
    audit,
    cycles,
    datasets,
    experiments,
    keys,
    lessons,
    live,
    optimizations,
    targets,
    versions,
    webhooks,
)
from ratchet.service.routes.frame import PREFIX

ROUTERS = (
    optimizations.router,
    live.router,
    live.sockets,
    datasets.router,
    targets.router,
    versions.router,
    algorithms.router,
    lessons.router,
    experiments.router,
    analytics.router,
    audit.router,
    keys.router,
    webhooks.router,
    cycles.router,
)

__all__ = ["PREFIX", "ROUTERS"]
