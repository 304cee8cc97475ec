"""URLs as lists have them → URLs as the engine takes them: ASCII, http or https, nothing odd left."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

_PLAIN: Final = re.compile(r"https?://[!$&-.0-9;=A-Z_a-z~:]+(?:[/?#][!-~]*)?", re.IGNORECASE)
_HOST: Final = re.compile(r"[A-Za-z0-9._\-]+")
_KEEP: Final = "!#$%&'()*+,/:;=?@[]~"


def normalized(url: str) -> str | None:
    """`url` in ASCII: spaces and non-ASCII characters percent-encoded as UTF-8, the host as IDNA.

    None for what is no http(s) URL.
    """
    if _PLAIN.fullmatch(url):
        return url
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
        if parts.scheme.lower() not in {"http", "https"} or not host:
            return None
        if "%" in host or not host.isascii():
            port = f":{parts.port}" if parts.port else ""
            parts = parts._replace(netloc=_plain_host(host) + port)
    except (ValueError, UnicodeError):
        return None
    if any(c <= " " or c == "\x7f" for c in parts.netloc):
        return None
    quoted = [quote(part, safe=_KEEP) for part in (parts.path, parts.query, parts.fragment)]
    return urlunsplit((parts.scheme, parts.netloc, *quoted))


def host_of(url: str) -> str:
    """The host of a normalized URL, lower case, without port; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


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
