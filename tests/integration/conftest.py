"""The fixtures of `integration_support`, for every test here."""

from integration_support import settings, web

__all__ = ["settings", "web"]
