"""The fixtures of `faults_support`, for every test here."""

from faults_support import client, fleet, rng, server, web

__all__ = ["client", "fleet", "rng", "server", "web"]
