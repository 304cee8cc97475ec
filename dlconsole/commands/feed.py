"""Put lists of image URLs into the queue, with their captions and other columns.

A list is a file, a folder (all lists below it), a glob in quotes, an http(s) URL, or - for standard input.
Formats: txt (one URL a line), csv, tsv, json, jsonl, parquet; text formats also .gz and .zst.

examples:
  dlconsole feed urls.txt --dataset laion5b
  dlconsole feed part-*.parquet --dataset laion5b --dry-run
  dlconsole feed metadata/ --preset laion2b
  dlconsole feed cc12m.tsv.gz --preset cc12m --keep none
  dlconsole feed https://example.org/pets.csv --url photo --caption words --id number
  zcat pets.jsonl.gz | dlconsole feed - --format jsonl
  dlconsole feed part-*.txt --path-template '{ds}/images/{ab}/{cd}/{sha256}.{ext}' --dry-run
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from dlconsole.commands.common import load_settings
from dlconsole.commands.feed_shown import how_to_go_on, print_result, progress
from dlconsole.commands.stopping import stop_event
from dlconsole.errors import RedisUnusable, UsageError

if TYPE_CHECKING:
    from dlconsole.services.columns import Columns
    from dlconsole.services.feed_report import FeedReport
    from dlconsole.services.manifests import Place
    from dlconsole.settings import Settings

_PREVIEW: Final = 3
_EPILOG: Final = """\
Columns are found by the names that data sets use, and shown before anything is fed; a preset or a flag names
them. Caption, id, hash and the kept columns travel with each task and come out with its outcome.
How far a list is fed stands in Redis, moved by the pushes themselves: after Ctrl-C, a crash or a
restart of Redis the same command goes on exactly there. A list that is done is named in --done-file.
Bad rows are left out, counted, and written to the folder feed_rejects (feed.reject_dir).
While Redis is away, loading or full it waits, from the first moment on; Ctrl-C ends that with status 130.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "lists", nargs="+", metavar="LIST", help="file, folder, glob, http(s) URL; - is standard input"
    )
    _add_columns(parser)
    parser.add_argument(
        "--layout",
        dest="feed.layout",
        choices=("sharded", "flat"),
        help="where images go: /{ds}/images/{ab}/{cd}/{sha256}.jpg (sharded), or as legacy names them, "
        "without {ab}/{cd} (flat)",
    )
    parser.add_argument(
        "--path-template",
        dest="feed.path_template",
        metavar="TEXT",
        help="a place of your own for them, of {ds} {sha256} {ab} {cd} {ext}",
    )
    parser.add_argument("--block", dest="feed.block", metavar="N", help="tasks a push (2000)")
    parser.add_argument("--again", action="store_true", help="feed lists that are done once more")
    parser.add_argument(
        "--done-file",
        dest="feed.done_file",
        metavar="FILE",
        help="where done lists are named (./done_part.txt)",
    )
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave out the first N rows of standard input"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the columns and the first tasks, and count; feed nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("formats and columns")
    group.add_argument(
        "--format",
        dest="feed.format",
        metavar="NAME",
        help="txt, csv, tsv, tsv-quoted, json, jsonl, parquet (as the list's name ends)",
    )
    group.add_argument(
        "--preset",
        dest="feed.preset",
        metavar="NAME",
        help="laion400m, laion2b, coyo700m, cc3m, cc12m, datacomp, wukong, opendatalab-laion",
    )
    for role, what in (
        ("url", "column of the URL"),
        ("caption", "column of the caption; none: no column"),
        ("id", "column of the id; none: no column"),
        ("hash", "column of the image's SHA-256 or MD5; none: no column"),
        ("ext", "column of the file's extension; none: no column"),
    ):
        group.add_argument(f"--{role}", dest=f"feed.{role}_column", metavar="COLUMN", help=what)
    group.add_argument(
        "--keep",
        dest="feed.keep",
        metavar="COLUMNS",
        help="other columns that travel along: a,b or all, none, small (small: values up to 1 KiB)",
    )


def run(args: argparse.Namespace) -> int:
    """Feed the lists one after the other; 0 when every list is done."""
    from dlconsole.services import embedded, manifests

    settings = load_settings(args).settings
    places = manifests.expand(args.lists, but=[settings.feed.done_file, settings.feed.reject_dir])
    if args.skip < 0 or (args.skip and (len(places) > 1 or not manifests.is_stream(places[0]))):
        raise UsageError(
            "--skip takes a number of rows, and goes with standard input: files go on by themselves"
        )
    total = manifests.total_bytes(places)
    if args.dry_run:
        return _dry_run(places, settings, total, as_json=args.json)
    return _feed(places, embedded.resolve(settings), total, args)


def _say(text: str) -> None:
    print(f"dlconsole: {text}", file=sys.stderr)


def _feed(places: list[Place], settings: Settings, total: int | None, args: argparse.Namespace) -> int:
    from dlconsole.services.feed_run import FeedRun

    feeding = FeedRun(settings, say=_say, skip=args.skip, again=args.again)
    with stop_event() as stopped, progress(total, len(places), quiet=args.json) as draw:

        def on_progress(waiting: str) -> bool:
            draw(feeding.reports.values(), waiting)
            return not stopped.is_set()

        feeding.on_progress = on_progress
        try:
            finished = feeding.run(places)
        except RedisUnusable as error:
            raise RedisUnusable(f"{error}{_after_fault(list(feeding.reports.values()))}") from error
    if feeding.not_listed:
        _say(f"warning: done lists are not written down: {feeding.not_listed}")
    if not feeding.reports:
        _say("stopped; nothing was fed")
    print_result(feeding.reports, settings, as_json=args.json, dry_run=False)
    return 0 if finished else 130


def _after_fault(reports: list[FeedReport]) -> str:
    """What is in the queue although the run could not go on, as a further line; '' for nothing."""
    fed = sum(report.fed for report in reports)
    return f"\n{fed:,} tasks were fed before that; {how_to_go_on(reports[-1])}" if fed else ""


def _dry_run(places: list[Place], settings: Settings, total: int | None, *, as_json: bool) -> int:
    from dlconsole.services import feeder

    reports: dict[Place, FeedReport] = {}
    first: list[bytes] = []
    with stop_event() as stopped, progress(total, len(places), quiet=as_json) as draw:
        for place in places:

            def on_progress(report: FeedReport, place: Place = place) -> bool:
                reports[place] = report
                draw(reports.values(), "")
                return not stopped.is_set()

            def on_tasks(items: list[bytes]) -> None:
                first.extend(items[: _PREVIEW - len(first)])

            def on_columns(columns: Columns, place: Place = place) -> None:
                _say(f"{place}: {columns.words()}")

            reports[place] = feeder.count(place, settings, on_progress, on_tasks, on_columns)
            if stopped.is_set():
                break
    if first and not as_json:
        print("The first tasks would be:")
        for item in first:
            print("  " + item.decode())
    print_result(reports, settings, as_json=as_json, dry_run=True)
    return 130 if any(report.stopped for report in reports.values()) else 0
