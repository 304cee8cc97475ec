"""The sites that the fleet fetches from: how quickly, what fails, how long they take, who is parked.

examples:
  dlconsole sites --dataset laion5b              those that are fetched from most quickly
  dlconsole sites --sort failures --limit 50     those that fail most
  dlconsole sites --json | jq '.sites[0]'        for scripts, with all kinds and times
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dlconsole.commands.common import load_settings
from dlconsole.units import format_bytes, format_count, format_duration, format_short

if TYPE_CHECKING:
    from dlconsole.services.sites import SitesPicture, SiteView

_EPILOG: Final = """\
Each worker process reports its 32 most fetched sites at every third heartbeat, counted since it began, and
all others together; legacy workers report nothing. Times are to the first byte, in ms, from samples; `reuse`
is how many requests found a connection open. The order `slow` is by p95.

exit status: 0; 3 when Redis cannot be used.
"""
_LIMIT: Final = 20
_ORDERS: Final = ("rate", "failures", "bytes", "slow")
_PERCENTS: Final = (50, 95, 99)
_UNKNOWN: Final = "-"
_OTHERS: Final = "(others)"
_PIPE_COLUMNS: Final = 200
"""Where no terminal sets a width, names stay whole."""
_LEAST_NAME: Final = 24
"""As many cells are left for a name before a column is shown that can be missed."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--sort", choices=_ORDERS, default="rate", help="what comes first (rate)")
    parser.add_argument(
        "--limit", type=_limit, default=_LIMIT, metavar="N", help=f"show at most N sites ({_LIMIT}; 0: all)"
    )


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, not {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    from dlconsole.services import embedded
    from dlconsole.services.sites import ordered, read_sites

    picture = read_sites(embedded.resolve(load_settings(args).settings))
    rows = ordered(picture.sites.items(), args.sort)
    shown = rows[: args.limit] if args.limit else rows
    if args.json:
        print(json.dumps(_to_json(picture, shown, args.sort)))
        return 0
    columns = shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns
    for line in _lines(picture, shown, args.sort, columns):
        print(line)
    return 0


# -- for machines ----------------------------------------------------------------------------------


def _to_json(picture: SitesPicture, shown: list[tuple[str, SiteView]], sort: str) -> dict[str, Any]:
    return {
        "dataset": picture.dataset,
        "at_ms": picture.at_ms,
        "sessions": picture.sessions,
        "reporting": picture.reporting,
        "unreadable": picture.unreadable,
        "sort": sort,
        "known": len(picture.sites),
        "sites": [{"site": name} | _record(site) for name, site in shown],
        "others": _record(picture.others),
    }


def _record(site: SiteView) -> dict[str, Any]:
    """`times` in seconds, null where nothing was sampled."""
    return {
        "fetches": site.fetches,
        "per_s": round(site.per_s, 2),
        "bytes": site.bytes,
        "failed": site.failed,
        "kinds": dict(site.kinds.most_common()),
        "times": {
            part: {f"p{percent}_s": site.percentile_s(part, percent) for percent in _PERCENTS}
            for part in ("dns", "connect", "tls", "first_byte")
        },
        "reused": site.reused,
        "opened": site.opened,
        "reuse": site.reuse,
        "parked_s": site.parked_s,
    }


# -- for people ------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """`width` is in cells; the text of any number fits into it."""

    head: str
    width: int
    text: Callable[[SiteView], str]


def _ms(site: SiteView, percent: int) -> str:
    found_s = site.percentile_s("first_byte", percent)
    return _UNKNOWN if found_s is None else format_short(found_s * 1000)


def _mostly(site: SiteView) -> str:
    """The kind of most of its failures."""
    return next((kind for kind, _ in site.kinds.most_common(1)), "")


_COLUMNS: Final = (
    _Column("fetches", 7, lambda site: format_short(site.fetches)),
    _Column("/s", 5, lambda site: format_short(site.per_s)),
    _Column("failed", 6, lambda site: format_short(site.failed)),
    _Column("bytes", 8, lambda site: format_bytes(site.bytes)),
    _Column("p50", 5, lambda site: _ms(site, 50)),
    _Column("p95", 5, lambda site: _ms(site, 95)),
    _Column("p99", 5, lambda site: _ms(site, 99)),
    _Column("reuse", 5, lambda site: _UNKNOWN if site.reuse is None else f"{site.reuse:.0%}"),
)
_PARKED: Final = _Column("parked", 9, lambda site: format_duration(site.parked_s) if site.parked_s else "")
_MOSTLY: Final = _Column("mostly", 15, _mostly)


def _lines(
    picture: SitesPicture, shown: list[tuple[str, SiteView]], sort: str, columns: int
) -> Iterator[str]:
    yield _heading(picture, sort)
    if shown or picture.others.fetches:
        yield "p50, p95, p99: ms to the first byte; reuse: requests on an open connection"
        yield from _table(picture, shown, columns)
    left_out = len(picture.sites) - len(shown)
    if left_out:
        yield f"and {format_count(left_out)} more sites: see --limit"


def _heading(picture: SitesPicture, sort: str) -> str:
    silent = picture.sessions - picture.reporting - picture.unreadable
    if not picture.sessions:
        text = f"no session of {picture.dataset!r} is alive (legacy workers report no sites)"
    elif silent == picture.sessions:
        text = f"no site reported yet by {_sessions(picture.sessions)}: it comes with the second heartbeat"
    else:
        text = f"{format_count(len(picture.sites))} sites of {_sessions(picture.sessions)}, by {sort}"
        text += f"; {format_count(silent)} not reporting yet" if silent else ""
    if picture.unreadable:
        text += f"; {format_count(picture.unreadable)} unreadable reports"
    return text


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{format_count(count)} sessions"


def _table(picture: SitesPicture, shown: list[tuple[str, SiteView]], columns: int) -> Iterator[str]:
    from rich.cells import cell_len

    from dlconsole.widgets.text import clean, fit

    names = [clean(name) for name, _ in shown]
    longest = max(map(cell_len, [_OTHERS, *names]))
    chosen = list(_COLUMNS)
    if any(site.parked_s for _, site in shown):
        chosen.append(_PARKED)
    if any(site.failed for _, site in shown) and columns - _taken([*chosen, _MOSTLY]) >= _LEAST_NAME:
        chosen.append(_MOSTLY)
    width = max(len(_OTHERS), min(longest, columns - _taken(chosen)))

    def line(name: str, texts: Iterator[str]) -> str:
        cells = (fit(text, column.width, right=True) for text, column in zip(texts, chosen, strict=True))
        return " ".join((name, *cells)).rstrip()

    yield line(fit("site", width), (column.head for column in chosen))
    for name, (_, site) in zip(names, shown, strict=True):
        yield line(_fit_end(name, width), (clean(column.text(site)) for column in chosen))
    if picture.others.fetches:
        yield line(fit(_OTHERS, width), (clean(column.text(picture.others)) for column in chosen))


def _taken(columns: list[_Column]) -> int:
    return sum(column.width + 1 for column in columns)


def _fit_end(name: str, width: int) -> str:
    """A site's name tells most at its end."""
    from dlconsole.widgets.text import fit

    if len(name) <= width or not name.isascii():
        return fit(name, width)
    return "…" + name[len(name) - width + 1 :]
