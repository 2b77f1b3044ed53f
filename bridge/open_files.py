"""How many files the process may have open: each connection is one, and many shells allow too few for the bridge."""

from __future__ import annotations

import sys

import structlog

BESIDE_CONNECTIONS = 256
"""For the broker, vendors, files, and whatever else the process has open."""

log = structlog.get_logger(__name__)


def raise_open_files(connections: int) -> None:
    """Let the process have that many connections, as far as the system allows; where it does not, say so."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + connections // 10 + BESIDE_CONNECTIONS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning("fewer open files than SIDECAR_MAX_CONNECTIONS needs: raise `ulimit -n`", needed=needed, hard=hard)
