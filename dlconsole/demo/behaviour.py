"""How the simulated web answers a URL: a pure function of the URL, the shares and a seed.

Nothing here touches a socket, so that the demo and the tests can say what any URL must give without
asking the server. Two spellings that mean the same request (percent-encoded or not, with a fragment,
with dot segments, any port) get the same answer, because clients rewrite URLs before they send them.

A path that begins with `/as/BEHAVIOUR/` is answered that way whatever the shares are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from struct import Struct
from typing import Final, TypeVar
from urllib.parse import unquote_to_bytes

import idna

from dlconsole.errors import UsageError
from dlconsole.model import FailureKind

T = TypeVar("T")


class Behaviour(StrEnum):
    """What the web does with a URL; the value is the name in `--shares` and in `/as/NAME/` paths."""

    GOOD = "good"
    NOT_FOUND = "404"
    FORBIDDEN = "403"
    GONE = "410"
    TOO_MANY = "429"
    SERVER_ERROR = "500"
    SLOW = "slow"
    NEVER_ENDING = "never_ending"
    TRUNCATED = "truncated"
    CUT_IMAGE = "cut_image"
    HTML = "html"
    OVERSIZED = "oversized"
    OVERSIZED_CHUNKED = "oversized_chunked"
    REDIRECT = "redirect"
    REDIRECT_LOOP = "redirect_loop"
    RESET = "reset"

    @property
    def status(self) -> int | None:
        """The HTTP error status that it answers with; None for all that are not plain errors."""
        return int(self.value) if self.value.isdigit() else None

    @property
    def failure_kind(self) -> FailureKind | None:
        """The kind a sound downloader reports; None: the picture is stored.

        Takes for granted a deadline above the slow answers' time, a byte cap between the pictures'
        sizes and `WebConfig.oversized_bytes`, and a check of the pictures' structure (`cut_image`).
        """
        return FailureKind.HTTP_STATUS if self.status else _FAILURE_KINDS.get(self)


_FAILURE_KINDS: Final[Mapping[Behaviour, FailureKind]] = {
    Behaviour.NEVER_ENDING: FailureKind.TIMEOUT,
    Behaviour.TRUNCATED: FailureKind.TRUNCATED,
    Behaviour.CUT_IMAGE: FailureKind.TRUNCATED,
    Behaviour.HTML: FailureKind.NOT_IMAGE,
    Behaviour.OVERSIZED: FailureKind.TOO_LARGE,
    Behaviour.OVERSIZED_CHUNKED: FailureKind.TOO_LARGE,
    Behaviour.REDIRECT_LOOP: FailureKind.REDIRECTS,
    Behaviour.RESET: FailureKind.CONNECT,
}


@dataclass(frozen=True, slots=True)
class Shares:
    """The part of all URLs that gets each behaviour, 0 to 1; what is left over is plainly good.

    With the defaults 88 % end in a stored picture: 85 % at once, 2 % by a redirect, 1 % slowly. That is
    the rate real fleets see on old URL lists. Those that cost a whole deadline are kept rare.
    """

    not_found: float = 0.06
    forbidden: float = 0.02
    gone: float = 0.005
    too_many: float = 0.004
    server_error: float = 0.008
    slow: float = 0.01
    never_ending: float = 0.003
    truncated: float = 0.003
    cut_image: float = 0.002
    html: float = 0.007
    oversized: float = 0.002
    oversized_chunked: float = 0.001
    redirect: float = 0.02
    redirect_loop: float = 0.002
    reset: float = 0.003

    def __post_init__(self) -> None:
        values = [getattr(self, field.name) for field in fields(self)]
        if not all(0 <= value <= 1 for value in values) or sum(values) > 1 + 1e-9:
            raise UsageError("Shares: each must be from 0 to 1, and all together at most 1.")

    def of(self, behaviour: Behaviour) -> float:
        """The share of one behaviour, the good ones included."""
        if behaviour is Behaviour.GOOD:
            return max(0.0, 1 - sum(float(getattr(self, field.name)) for field in fields(self)))
        return float(getattr(self, behaviour.name.lower()))

    @classmethod
    def all_good(cls) -> Shares:
        """A web without faults."""
        return cls(**{field.name: 0.0 for field in fields(cls)})

    @classmethod
    def parse(cls, text: str) -> Shares:
        """`404=0.05,slow=0.01`: the defaults with these changed. A leading `good` clears the defaults.

        Raises UsageError naming the item that cannot be read.
        """
        items = [item.strip() for item in text.split(",") if item.strip()]
        base = cls()
        if items and items[0] == Behaviour.GOOD:
            base = cls.all_good()
            del items[0]
        changes: dict[str, float] = {}
        for item in items:
            name, _, number = item.partition("=")
            try:
                behaviour, share = Behaviour(name.strip()), float(number)
            except ValueError:
                behaviour, share = Behaviour.GOOD, -1.0
            if behaviour is Behaviour.GOOD or not 0 <= share <= 1:
                raise UsageError(
                    f"Shares: cannot use {item!r}; accepted: NAME=FRACTION with a fraction from 0 to 1, NAME "
                    f"one of {', '.join(b for b in Behaviour if b is not Behaviour.GOOD)}; or 'good' first."
                )
            changes[behaviour.name.lower()] = share
        return replace(base, **changes)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a URL gets. `number` (32 bits) makes the choices, `spread` (0 to 1) says how late it comes."""

    behaviour: Behaviour
    number: int
    spread: float

    def choose(self, items: Sequence[T]) -> T:
        """The one of these that the URL gets, such as its picture of all pictures."""
        return items[self.number % len(items)]


_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?:[^/?#]*@)?(?P<host>\[[^\]/?#]*\]|[^/?#:\[\]]+)(?::[0-9]*)?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_FORCED: Final = re.compile(rb"/as/([a-z0-9_]+)(?:/|\Z)")
_DRAWS: Final = Struct(">QII")


def behaviour_of(url: str, shares: Shares, seed: int) -> Behaviour:
    """How the web answers this absolute http or https URL. Raises ValueError if it is no such URL."""
    return plan_of(url, shares, seed).behaviour


def plan_of(url: str, shares: Shares, seed: int) -> Plan:
    """The behaviour with the draws that decide its details. Raises ValueError as `behaviour_of`."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"not an absolute http or https URL: {url!r}")
    scheme, host, path, query = match.group("scheme", "host", "path", "query")
    resource = _plain_path(path or "/")
    key = b"%b://%b%b%b" % (scheme.lower().encode(), _plain_host(host), resource, _decoded(query or ""))
    digest = blake2b(key, digest_size=16, key=b"%d" % seed).digest()
    draw, number, late = _DRAWS.unpack(digest)
    forced = _FORCED.match(resource)
    behaviour = _by_name(forced[1]) if forced else None
    return Plan(behaviour or _pick(draw / 2**64, shares), number, late / 2**32)


def demo_urls(base: str, count: int, *more: str) -> Iterator[str]:
    """`count` URLs on an origin such as `http://127.0.0.1:8000`, and on more of them in turn; the port does
    not change the answers.
    """
    bases = (base, *more)
    return (f"{bases[index % len(bases)]}/img/{index:06d}.jpg" for index in range(count))


def _plain_host(host: str) -> bytes:
    if host.isascii():
        return host.lower().encode()
    try:
        return idna.encode(host, uts46=True).lower()
    except idna.IDNAError:
        return host.lower().encode("utf-8", "surrogateescape")


def _decoded(text: str) -> bytes:
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def _plain_path(path: str) -> bytes:
    """Decoded and without dot segments (RFC 3986, 5.2.4), which clients resolve before they send."""
    plain = _decoded(path)
    if b"/." not in plain:
        return plain
    *folders, name = plain.split(b"/")[1:]
    kept: list[bytes] = []
    for part in (*folders, name):
        if part == b"..":
            del kept[-1:]
        elif part != b".":
            kept.append(part)
    if name in {b".", b".."}:
        kept.append(b"")
    return b"/" + b"/".join(kept)


def _by_name(name: bytes) -> Behaviour | None:
    try:
        return Behaviour(name.decode())
    except ValueError:
        return None


def _pick(draw: float, shares: Shares) -> Behaviour:
    for limit, behaviour in _limits(shares):
        if draw < limit:
            return behaviour
    return Behaviour.GOOD


@lru_cache(maxsize=16)
def _limits(shares: Shares) -> tuple[tuple[float, Behaviour], ...]:
    """Upper ends of the behaviours' intervals in 0 to 1, the good ones first: they are asked for most."""
    return tuple(zip(accumulate(shares.of(b) for b in Behaviour), Behaviour, strict=True))
