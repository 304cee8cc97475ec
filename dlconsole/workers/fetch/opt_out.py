"""Whether an answer's headers say that its picture is not to be collected.

`X-Robots-Tag` as Google documents it ("Robots meta tag, data-nosnippet, and X-Robots-Tag
specifications"), with the directives against machine learning that image hosts added to it, and the
TDM Reservation Protocol (W3C community group report, 2024), `tdm-reservation: 1`.
"""

from __future__ import annotations

import re
from typing import Final

_REFUSING: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_VALUED: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives with a value behind a colon, which is no user-agent token."""
_TOKEN: Final = re.compile(r"[!#-'*+.^_`|~0-9a-z-]+")
"""RFC 9110, 5.6.2. Behind a comma may also stand the rest of a date: `25 jun 2030 15:00:00 gmt`."""
_HEADER: Final = re.compile(
    rb"^(x-robots-tag|tdm-reservation)[ \t]*:([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)", re.MULTILINE
)
"""With lines that are folded: RFC 9112, 5.2."""


def opt_out_of(headers: bytes | bytearray, agent: str) -> str:
    """The header line that opts out, as `name: value`, or ''. `headers` are an answer's header lines as
    they came, in lower case; `agent` is our user-agent token, likewise: what is meant for others does not
    count.
    """
    if b"x-robots-tag" not in headers and b"tdm-reservation" not in headers:  # cheaper than a search
        return ""
    for match in _HEADER.finditer(headers):
        name, value = match[1].decode(), " ".join(match[2].decode("latin-1").split())
        opts_out = value == "1" if name == "tdm-reservation" else _robots_refuse(value, agent)
        if opts_out:
            return f"{name}: {value[:200]}"
    return ""


def agent_token(user_agent: str) -> str:
    """The token that a User-Agent is addressed by: its first product, without version."""
    return re.split(r"[/\s;(]", user_agent.strip(), maxsplit=1)[0].lower()


def _robots_refuse(value: str, agent: str) -> bool:
    """A token counts for the directives behind it, up to the next token; before the first, all are meant."""
    meant = True
    for part in value.split(","):
        token, colon, directive = part.partition(":")
        token = token.strip()
        if not colon:
            directive = token
        elif token not in _VALUED and _TOKEN.fullmatch(token):
            meant = token in {agent, "*"}
        if meant and directive.strip() in _REFUSING:
            return True
    return False
