"""The fixtures of `integration_support`, for every test here."""

from integration_support import no_room, no_worker_outlives_its_test, settings, web

__all__ = ["no_room", "no_worker_outlives_its_test", "settings", "web"]
