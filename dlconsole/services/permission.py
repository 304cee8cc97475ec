"""Where a read-only context is enforced: whatever changes the queue asks here first."""

from __future__ import annotations

from dlconsole.errors import ReadOnlyError
from dlconsole.settings import Settings


def require_writable(settings: Settings, doing: str) -> None:
    """Raises ReadOnlyError in a read-only context; `doing` says what was asked for, as in 'feeding'."""
    if settings.read_only:
        where = f"context {settings.context!r}" if settings.context else "this connection"
        raise ReadOnlyError(f"{where} is read-only: {doing} is refused")
