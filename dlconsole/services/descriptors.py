"""Open files: how many a worker may have, and what it makes of them.

A task must not fail, nor the store seem broken, because this process has too much open. So a worker
raises its limit as far as it may, fetches less at once where that does not do, and keeps as many of the
store's folders open as are left.
"""

from __future__ import annotations

import resource
from typing import Final

_OWN: Final = 80
"""Redis, log, epoll, libraries, the file that is being written (also of the large bodies only one at a time:
each is opened for a piece of it), the least of kept connections."""
_KEPT_PER_FETCH: Final = 2
_LEAST_KEPT: Final = 16
_BUSY_PER_FETCH: Final = 4
"""A fetch that looks its host up, or tries its IPv6 and IPv4 addresses at once, beside what is kept."""
_LEAST_FOLDERS: Final = 32
_MOST_FOLDERS: Final = 512
_NO_LIMIT: Final = 2**31


def kept_connections(concurrency: int) -> int:
    """How many connections are kept open for whoever asks the same site next."""
    return max(_LEAST_KEPT, _KEPT_PER_FETCH * concurrency)


def wanted(concurrency: int) -> int:
    """How many open files a worker process needs for so many fetches at once."""
    return _OWN + (_KEPT_PER_FETCH + _BUSY_PER_FETCH) * concurrency + _LEAST_FOLDERS


def most() -> int:
    """The limit that this process can raise its own to, without anybody's leave."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _NO_LIMIT if hard == resource.RLIM_INFINITY else hard


def raise_limit() -> None:
    """As far as `most` says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def affordable(concurrency: int) -> int:
    """So many fetches at once, or as many, but one, as the raised limit is enough for."""
    return max(1, min(concurrency, (most() - wanted(0)) // (_KEPT_PER_FETCH + _BUSY_PER_FETCH)))


def folders(concurrency: int) -> int:
    """How many of the store's folders may be kept open beside so many fetches."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _NO_LIMIT if soft == resource.RLIM_INFINITY else soft
    return max(1, min(_MOST_FOLDERS, allowed - wanted(concurrency) + _LEAST_FOLDERS))
