"""URLs as lists have them → URLs as the engine takes them: ASCII, http or https, nothing odd left."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

import msgspec

from dlconsole.workers.fetch.address import is_address, literal_address

_PLAIN: Final = re.compile(r"([Hh][Tt][Tt][Pp][Ss]?)://([-.0-9A-Z_a-z]+)(?::([0-9]{1,5}))?(?:[/?#][!-~]*)?")
"""(`IGNORECASE` takes U+017F for an `s`, and twice the time.)"""
_HOST: Final = re.compile(r"[A-Za-z0-9._\-]+")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ESCAPE: Final = re.compile("%[0-9A-Fa-f]{2}")
_DOTS: Final = re.compile(r"(?<=/)(?:\.|%2E){1,2}(?=/|$)")
ROBOTS_TXT_BYTES: Final = 500 * 1024
"""How much of a robots.txt is read: RFC 9309, 2.5."""
MAX_HOST: Final = 253
"""No name has more characters: RFC 1035, 2.3.4."""
_KEEP: Final = "!#$%&'()*+,/:;=?@[]~"


class Target(msgspec.Struct, frozen=True, gc=False):
    """A URL to fetch: in ASCII, with the host (lower case, no brackets, an address in its usual form) and
    port that it means.
    """

    url: str
    host: str
    port: int
    is_address: bool = False
    """Whether the host is an address, so that there is nothing to look up."""


class Origin(NamedTuple):
    """What one robots.txt speaks for."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return f"{self.scheme}://{host}" if usual else f"{self.scheme}://{host}:{self.port}"

    @property
    def robots_txt(self) -> Target:
        """Where it is."""
        return Target(f"{self}/robots.txt", self.host, self.port, is_address(self.host))


def origin_of(target: Target) -> Origin:
    """Scheme, host and port of a URL."""
    return Origin("https" if target.url[:5].lower() == "https" else "http", target.host, target.port)


def target_of(url: str) -> Target | None:
    """`url` in ASCII: spaces and non-ASCII characters percent-encoded as UTF-8, the host as IDNA, an IPv4
    address (also one mapped into IPv6) in its usual spelling.

    None for what is no http(s) URL.
    """
    plain = _PLAIN.fullmatch(url)
    if plain is not None:
        scheme, host, port = plain.groups()
    else:
        encoded = _encoded(url)
        if encoded is None:
            return None
        url = encoded
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        except ValueError:
            return None
        if not _HOST.fullmatch(host) and ":" not in host:
            return None
    number = int(port) if port else 443 if len(scheme) == 5 else 80
    if not 0 < number < 65536:
        return None
    host = host.lower()
    if host[-1:] == ".":
        url, host = _without_dot(url), host[:-1]
    if not host or len(host) > MAX_HOST:
        return None
    if host[host.rfind(".") + 1 :] < ":" or ":" in host:  # behind the last dot a digit, a hyphen, or nothing
        return _with_address(url, host, number)
    return Target(url, host, number)


def _without_dot(url: str) -> str:
    """The URL with its host's last dot left out: to servers, certificates and limits per host it is the same
    host (RFC 1034, 3.1).
    """
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    host, colon, port = place.partition(":")
    return url.replace(parts.netloc, user + at + host[:-1] + colon + port, 1)


def _with_address(url: str, host: str, port: int) -> Target | None:
    """A host that ends in a number is an address, however spelt, or nothing (WHATWG URL, 3.5): what is
    checked is what is sent.
    """
    if host.endswith("."):
        return None
    address = literal_address(host)
    if address is None:
        is_none = ":" in host or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2])
        return None if is_none else Target(url, host, port)
    if address == host or ":" in address:
        return Target(url, address, port, is_address=True)
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    _, colon, digits = place[place.rfind("]") + 1 :].partition(":")
    url = urlunsplit(parts._replace(netloc=f"{user}{at}{address}{colon}{digits}"))
    return Target(url, address, port, is_address=True)


def request_target(url: str) -> str:
    """Path and query as libcurl sends them: without dot segments, the path's escapes in capitals (RFC 3986,
    6.2.2), else untouched.
    """
    parts = urlsplit(url)
    path = _ESCAPE.sub(lambda match: match[0].upper(), parts.path)
    path = _DOTS.sub(lambda match: match[0].replace("%2E", "."), path)
    path = urlsplit(urljoin(url, path)).path if "/." in path else path
    return (path or "/") + (f"?{parts.query}" if parts.query else "")


def _encoded(url: str) -> str | None:
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
        if parts.scheme.lower() not in {"http", "https"} or not host:
            return None
        user, at, place = parts.netloc.rpartition("@")
        if "@" in user or (place.startswith("[") and ":" not in host):
            return None
        user = quote(user, safe=_KEEP)
        if any(byte < 32 for byte in unquote_to_bytes(user)):  # libcurl sends no such credentials
            return None
        parts = parts._replace(netloc=user + at + place)
        if "%" in host or not host.isascii():
            port = f":{parts.port}" if parts.port else ""
            parts = parts._replace(netloc=_plain_host(host) + port)
        quoted = [quote(part, safe=_KEEP) for part in (parts.path, parts.query, parts.fragment)]
    except ValueError:  # UnicodeError is one: half a surrogate pair
        return None
    if any(c <= " " or c == "\x7f" for c in parts.netloc):
        return None
    return urlunsplit((parts.scheme, parts.netloc, *quoted))


def _plain_host(host: str) -> str:
    """The host that libcurl would make of this one: percent-decoded, IDNA. It is decoded here so that
    the address guard sees what is connected to. Raises ValueError.
    """
    host = unquote(host, errors="strict")
    if not host.isascii():
        host = _idna(host)
    if not _HOST.fullmatch(host):
        raise ValueError(f"no host: {host!r}")
    return host


def _idna(host: str) -> str:
    import idna  # noqa: PLC0415  (30 ms of tables, for the few hosts that need them)

    try:
        return idna.encode(host, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(str(error)) from error
