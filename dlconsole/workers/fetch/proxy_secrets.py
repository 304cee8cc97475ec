"""A proxy's user and password, which no failure's message may have: those go to Redis and into files.

Settings refuse a proxy that libraries are known to complain of by its URL; this is for what nobody knows.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Final
from urllib.parse import unquote

import msgspec

from dlconsole.model import Failure

_MASK: Final = "***"
_LEAST: Final = 4
"""Shorter passwords are found only where they stand in the URL: they would be found everywhere."""


class ProxySecrets:
    """For one proxy; '' has none."""

    def __init__(self, proxy: str) -> None:
        scheme, _, rest = proxy.partition("://")
        user_info, at, _ = rest.rpartition("@")
        user, _, password = user_info.partition(":")
        self._pattern: re.Pattern[str] | None = None
        if not at:
            return
        pair = unquote(user_info)
        texts = {user_info, pair, b64encode(pair.encode()).decode(), password, unquote(password)}
        found = [re.escape(text) for text in sorted(texts, key=len, reverse=True) if len(text) >= _LEAST]
        # From its beginning, as messages cut it off anywhere.
        url = rf"{re.escape(scheme)}://{re.escape(user)}(?=[:@])[^'\"]*"
        self._pattern = re.compile("|".join([url, *found]))

    def taken_out(self, failure: Failure) -> Failure:
        """The failure, with `***` for what its message has of them."""
        if self._pattern is None:
            return failure
        return msgspec.structs.replace(failure, message=self._pattern.sub(_MASK, failure.message))
