"""The fixtures that every test here may use."""

from faults_support import client, fleet, rng, server, web
from legacy_worker import start_legacy

__all__ = ["client", "fleet", "rng", "server", "start_legacy", "web"]
