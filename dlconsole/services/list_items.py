"""A list as the settings say: how it is opened, and the one place where its rows become items."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dlconsole.errors import FeedError
from dlconsole.services.columns import Columns, choose
from dlconsole.services.items import Tally, TaskWriter
from dlconsole.services.manifests import Block, Limits, Place, Reading, UrlList, open_list
from dlconsole.services.presets import PRESETS
from dlconsole.settings import Settings


@dataclass(frozen=True, slots=True)
class ItemMaker:
    """Makes the items of one list. `items` takes a block and moves the tally on. `columns` are those of the
    list, None for plain text; `needed` those that must be read, None for all.
    """

    items: Callable[[Block, Tally], list[bytes]]
    columns: Columns | None = None
    needed: frozenset[str] | None = None


def open_as_set(
    place: Place, settings: Settings, idle: Callable[[], bool] = lambda: True
) -> AbstractContextManager[UrlList]:
    """Open a list. Raises FeedError, and Stopped where `idle` ended the wait for it."""
    feed = settings.feed
    limits = Limits(feed.block, feed.max_url_bytes, feed.max_row_bytes)
    wanted = "" if feed.format == "auto" else feed.format
    preset = PRESETS.get(feed.preset)
    reading = Reading(wanted, preset.format, preset.names) if preset else Reading(wanted)
    return open_list(place, limits, reading, idle)


def item_maker(source: UrlList, settings: Settings, idle: Callable[[], bool]) -> ItemMaker:
    """Find out what the list's columns are. Raises FeedError, Stopped."""
    if not source.has_columns:
        writer = TaskWriter(settings)
        return ItemMaker(lambda block, tally: writer.tasks(block.lines, tally, too_long=block.too_long))
    from dlconsole.services.row_items import RowWriter  # noqa: PLC0415  (a feed of plain text needs it not)

    header = source.header(idle)
    try:
        columns = choose(header, settings.feed)
    except FeedError as error:
        raise FeedError(f"{source.path}: {error}") from None
    needed = columns.needed if columns.drops_others and not header.open_ended else None
    return ItemMaker(RowWriter(settings, source.id, columns).tasks, columns, needed)
