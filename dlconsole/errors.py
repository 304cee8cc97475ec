"""One tree of errors. A message says what happened, to which thing, and what the reader can do.

DlconsoleError              anything a command reports in one line and exits for
├── ConfigError             a wrong key, type or unit; an unreadable file
├── UsageError              arguments that do not go together
├── ReadOnlyError           a read-only context was asked to change something
├── RedisError              the server cannot be used
│   ├── RedisUnavailable    not reachable, loading, out of memory: worth another try
│   └── RedisUnusable       wrong version, wrong password, a key of another type: a person must act
├── FencedError             this session's lease has run out: its tasks are no longer its own
├── FeedError               a URL list that cannot be read
├── LedgerError             a ledger that cannot be read, or no room for what is made of it
├── BadPathError            a task's path that is no place under the store
└── StoreError              the store cannot be written: never a task's failure
    └── SpillLost           it was closed meanwhile, and an unfinished body with it
"""

from __future__ import annotations


class DlconsoleError(Exception):
    """What a command reports in one line; `exit_code` is the process's status."""

    exit_code = 1


class ConfigError(DlconsoleError):
    """A setting is wrong: names the source, the key and the accepted values."""

    exit_code = 2


class UsageError(DlconsoleError):
    """Arguments that do not go together."""

    exit_code = 2


class ReadOnlyError(DlconsoleError):
    """A read-only context was asked to change something."""

    exit_code = 2


class RedisError(DlconsoleError):
    """The Redis server cannot be used."""

    exit_code = 3


class RedisUnavailable(RedisError):
    """For now: not reachable, loading, out of memory. Trying again can help."""


class RedisUnusable(RedisError):
    """For good: wrong version, wrong password, a key of another type. A person must act."""


class FencedError(DlconsoleError):
    """The session's lease has run out; whatever it held may already be someone else's."""


class FeedError(DlconsoleError):
    """A URL list cannot be read."""


class LedgerError(DlconsoleError):
    """A ledger cannot be read, or what is made of it cannot be written."""


class BadPathError(DlconsoleError):
    """A task's path leads out of the store, or is no path at all."""


class StoreError(DlconsoleError):
    """The store cannot be written (full, read-only, gone). Never counted against a task."""


class SpillLost(StoreError):
    """A body's unfinished file went when the store was closed; of how the store is now that says nothing."""
