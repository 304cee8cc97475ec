"""Lists of URLs: where they are, what format each has, and their rows in blocks, from any position on."""

from dlconsole.services.manifests.opened import Limits, Reading, UrlList, open_list
from dlconsole.services.manifests.places import (
    Place,
    Remote,
    expand,
    format_of,
    is_stream,
    lists_below,
    total_bytes,
)
from dlconsole.services.manifests.rows import BadRow, Block, Header, Row, Stopped, Table

__all__ = [
    "BadRow",
    "Block",
    "Header",
    "Limits",
    "Place",
    "Reading",
    "Remote",
    "Row",
    "Stopped",
    "Table",
    "UrlList",
    "expand",
    "format_of",
    "is_stream",
    "lists_below",
    "open_list",
    "total_bytes",
]
