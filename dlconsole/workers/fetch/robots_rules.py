"""What a robots.txt says to one crawler: RFC 9309, with Google's reading where that leaves it open.

Written here because no library bears files that mean harm: protego makes a rule of each rule for each agent
of its group, which half a megabyte of both turns into gigabytes, and does not say which rule decided.
A file is read once, line by line; of it only the rules meant for us are kept, up to a limit. A wildcard is
looked for part by part, without regular expressions, so that a URL costs at most its length for each rule.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from dlconsole.workers.fetch.opt_out import agent_token
from dlconsole.workers.fetch.urls import ROBOTS_TXT_BYTES

MAX_RULES: Final = 10_000
"""Rules kept of one file; what stands behind them does not count."""
MAX_WILDCARDS: Final = 1_000
"""How many of them may have a `*` or `$` in their middle: each is tried with each URL."""
MAX_PATTERN: Final = 4096
"""Longest one, in bytes; longer ones do not count."""

_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_AGENT: Final = frozenset({b"user-agent", b"useragent", b"user agent"})
_ALLOW: Final = frozenset({b"allow"})
_DISALLOW: Final = frozenset({b"disallow", b"dissallow", b"dissalow", b"disalow", b"diasllow", b"disallaw"})
"""With the misspellings that Google's parser takes as well."""
_TO_BE_WRITTEN_ANEW: Final = re.compile(r"%[0-9A-Fa-f]{2}|[^!#$%&'()*+,/:;=?@\[\]A-Za-z0-9._~-]")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")


class _Rule(NamedTuple):
    """The longer rule counts, of equal ones the one that allows: so they are in the order of tuples."""

    length: int
    allows: bool
    pattern: str

    @property
    def parts(self) -> list[str]:
        """What stands between its wildcards."""
        return re.sub(r"\*+", "*", self.pattern.removesuffix("$")).split("*")


class Rules:
    """The rules that one robots.txt has for us."""

    __slots__ = ("_lengths", "_prefixes", "_wild", "size_bytes")

    def __init__(self, rules: Iterable[_Rule] = ()) -> None:
        self._prefixes: dict[str, _Rule] = {}
        wild: list[_Rule] = []
        for rule in rules:
            prefix = rule.pattern.rstrip("*")
            if "*" in prefix or prefix.endswith("$"):
                wild.append(rule)
            else:
                self._prefixes[prefix] = max(rule, self._prefixes.get(prefix, rule))
        wild.sort(reverse=True)
        self._wild = [(rule, rule.parts) for rule in wild[:MAX_WILDCARDS]]
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})
        self.size_bytes = 500 + sum(300 + len(prefix) for prefix in self._prefixes)
        """About how much memory it takes; a part of a wildcard takes more than its letters."""
        self.size_bytes += sum(300 + 20 * rule.length for rule, _ in self._wild)

    def disallowed_by(self, path: str) -> str:
        """The pattern that disallows a path (with its query, as `canonical` writes it), or ''."""
        best: _Rule | None = None
        for length in self._lengths:
            rule = self._prefixes.get(path[:length])
            if rule is not None and (best is None or rule > best):
                best = rule
        for rule, parts in self._wild:
            if best is not None and rule <= best:
                break
            if _matches(parts, path, to_its_end=rule.pattern.endswith("$")):
                best = rule
                break
        return "" if best is None or best.allows else best.pattern


def parse(body: bytes | bytearray, token: str) -> Rules:
    """What a file says to the crawler that is addressed as `token` (in lower case). What is no line of a
    robots.txt is passed over, so that anything can be read.
    """
    groups: dict[str, list[_Rule]] = {"*": []}
    meant: set[str] = set()
    agents_end = True
    for name, value in _lines(body):
        if name in _AGENT:
            if agents_end:
                meant, agents_end = set(), False
            agent = agent_token(value)
            if agent in {token, "*"}:
                meant.add(agent)
                groups.setdefault(agent, [])
        elif name in _ALLOW or name in _DISALLOW:
            agents_end = True
            if not meant or not value.startswith(("/", "*")) or len(value) > MAX_PATTERN:
                continue  # an empty one disallows nothing
            pattern = canonical(value)
            for agent in meant:
                if len(groups[agent]) < MAX_RULES:
                    groups[agent].append(_Rule(len(pattern), name in _ALLOW, pattern))
    return Rules(groups.get(token, groups["*"]))


def canonical(text: str) -> str:
    """A path or a pattern in the form in which they are compared: RFC 9309, 2.2.2. Escapes stay where the
    character means something in a URL; bytes are characters up to 255.
    """
    return _TO_BE_WRITTEN_ANEW.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    found = match[0]
    code = int(found[1:], 16) if len(found) == 3 else ord(found)
    character = chr(code)
    return character if _UNRESERVED.fullmatch(character) else f"%{code:02X}"


def _lines(body: bytes | bytearray) -> Iterator[tuple[bytes, str]]:
    """Name and value of each line that has both."""
    if body.startswith(_GZIP):
        body = _unpacked(body)
    for line in body.removeprefix(_BOM).splitlines():
        name, colon, value = line.partition(b"#")[0].partition(b":")
        if colon:
            yield bytes(name.strip().lower()), value.strip().decode("latin-1")


def _unpacked(body: bytes | bytearray) -> bytes:
    """What a server packed although it was asked not to, up to the limit; b'' where it cannot be read."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, ROBOTS_TXT_BYTES)
    except zlib.error:
        return b""


def _matches(parts: list[str], path: str, *, to_its_end: bool) -> bool:
    """Whether the parts follow each other in the path, the first at its beginning."""
    first, *rest = parts
    if not path.startswith(first):
        return False
    if not rest:
        return not to_its_end or path == first
    at = len(first)
    last = rest.pop()
    for part in rest:
        at = path.find(part, at)
        if at < 0:
            return False
        at += len(part)
    if to_its_end:
        return len(path) - at >= len(last) and path.endswith(last)
    return path.find(last, at) >= 0
