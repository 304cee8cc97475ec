"""Put lists of image URLs into the queue, with their captions and other columns.

A list is a file, a folder (all lists below it), a glob in quotes, an http(s) URL, or - for standard input.
Formats: txt (one URL a line), csv, tsv, json, jsonl, parquet; text formats also .gz and .zst.

examples:
  dlconsole feed urls.txt --dataset laion5b
  dlconsole feed part-*.parquet --dataset laion5b --dry-run
  dlconsole feed metadata/ --preset laion2b
  dlconsole feed cc12m.tsv.gz --preset cc12m --keep none
  dlconsole feed part-*.parquet --limit 1000000 --shuffle-hosts --dedupe file
  dlconsole feed incoming/ --watch --threshold 5000000 --dedupe bloom
  dlconsole feed https://example.org/pets.csv --url photo --caption words --id number
  zcat pets.jsonl.gz | dlconsole feed - --format jsonl
  dlconsole feed part-*.txt --path-template '{ds}/images/{ab}/{cd}/{sha256}.{ext}' --dry-run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dlconsole.commands.common import load_settings
from dlconsole.commands.feed_shown import how_to_go_on, print_result, progress
from dlconsole.commands.stopping import stop_event
from dlconsole.errors import RedisUnusable, UsageError
from dlconsole.units import printable

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
    _add_choice(parser)
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
        "--dry-run",
        action="store_true",
        help="show the columns and the first tasks, and count, duplicates as well; feed nothing",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is fed, in which order, and when")
    group.add_argument(
        "--limit", type=int, metavar="N", help="tasks of all these lists together, earlier runs counted"
    )
    group.add_argument(
        "--threshold",
        dest="feed.threshold",
        metavar="N",
        help="wait while more than N tasks are queued (0: never)",
    )
    group.add_argument(
        "--shuffle-hosts",
        dest="feed.shuffle_hosts",
        action="store_const",
        const=True,
        help="neighbours of different hosts, within windows of 20,000 rows (feed.shuffle_window)",
    )
    group.add_argument(
        "--dedupe",
        dest="feed.dedupe",
        choices=("off", "file", "bloom"),
        help="of equal URLs feed the first: in each list, exactly (file); in all lists and runs of the "
        "dataset, by a filter that takes 1 new URL in 1,000 for one once 100 million are in it; after a kill "
        "the last blocks' may be fed twice (bloom)",
    )
    group.add_argument(
        "--temp",
        dest="feed.temp_dir",
        metavar="DIR",
        help="folder for what --dedupe file needs, 32 to 64 bytes a URL, while it runs (the state folder)",
    )
    group.add_argument(
        "--watch",
        action="store_true",
        help="LISTs are folders: feed each list that appears in them and has been the same for 5 s "
        "(feed.watch_s), until stopped",
    )


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
    _check(args, settings)
    if args.watch:
        return _watch([Path(name) for name in args.lists], embedded.resolve(settings), args)
    places = manifests.expand(args.lists, but=[settings.feed.done_file, settings.feed.reject_dir])
    if args.skip < 0 or (args.skip and (len(places) > 1 or not manifests.is_stream(places[0]))):
        raise UsageError(
            "--skip takes a number of rows, and goes with standard input: files go on by themselves"
        )
    _check_streams(args, settings, [place for place in places if manifests.is_stream(place)])
    total = manifests.total_bytes(places)
    if args.dry_run:
        return _dry_run(places, settings, total, args)
    return _feed(places, embedded.resolve(settings), total, args)


def _check(args: argparse.Namespace, settings: Settings) -> None:
    """Raises UsageError where arguments do not go together, whatever the lists are."""
    if args.limit is not None and args.limit < 0:
        raise UsageError("--limit takes a number of tasks, 0 or more")
    if args.again and settings.feed.dedupe == "bloom":
        raise UsageError("--again and --dedupe bloom: the filter knows every URL of a list that is done")
    if not args.watch:
        return
    for name in ("limit", "again", "skip", "dry_run"):
        if getattr(args, name):
            raise UsageError(f"--watch and --{name.replace('_', '-')} do not go together")
    for name in args.lists:
        if not Path(name).is_dir():
            raise UsageError(f"--watch takes folders, and {name} is none")


def _check_streams(args: argparse.Namespace, settings: Settings, streams: list[Place]) -> None:
    """Raises UsageError for what needs a list that can be read again."""
    if not streams or args.dry_run:
        return
    if settings.feed.dedupe == "bloom":
        raise UsageError(
            f"--dedupe bloom needs lists that can be read again: write {streams[0]} to a file, or use file"
        )
    if args.limit is not None and settings.feed.shuffle_hosts:
        raise UsageError(f"--limit with --shuffle-hosts needs lists that can be read again, not {streams[0]}")


def _watch(roots: list[Path], settings: Settings, args: argparse.Namespace) -> int:
    from dlconsole.services.feed_run import FeedRun
    from dlconsole.services.watch import Folders, Watch

    feeding = FeedRun(settings, say=_say)
    folders = Folders(roots, [settings.feed.done_file, settings.feed.reject_dir], settings.feed.watch_s)
    watch = Watch(feeding, folders)
    with stop_event() as stopped, progress(None, 0, quiet=args.json) as draw:

        def on_progress(waiting: str) -> bool:
            draw(feeding.reports.values(), waiting)
            return not stopped.is_set()

        def on_list(path: Path, report: FeedReport) -> None:
            if not report.fed_as:  # of thousands that are done, nobody wants to read
                print_result({path: report}, settings, as_json=args.json, dry_run=False)
                sys.stdout.flush()

        feeding.on_progress, watch.on_list = on_progress, on_list
        _say(f"watching {', '.join(map(str, roots))} (Ctrl-C stops)")
        watch.feed()
    if feeding.not_listed:
        _say(f"warning: done lists are not written down: {feeding.not_listed}")
    _say(f"{watch.done:,} lists are done, {watch.failed:,} could not be read")
    return 130


def _say(text: str) -> None:
    print(f"dlconsole: {printable(text)}", file=sys.stderr)


def _feed(places: list[Place], settings: Settings, total: int | None, args: argparse.Namespace) -> int:
    from dlconsole.services.feed_run import FeedRun

    feeding = FeedRun(settings, say=_say, skip=args.skip, again=args.again, limit=args.limit)
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
    if feeding.is_limited:
        _say(f"the limit of {args.limit:,} tasks is reached")
    elif not feeding.reports:
        _say("stopped; nothing was fed")
    print_result(
        feeding.reports, settings, as_json=args.json, dry_run=False, limit_reached=feeding.is_limited
    )
    return 0 if finished else 130


def _after_fault(reports: list[FeedReport]) -> str:
    """What is in the queue although the run could not go on, as a further line; '' for nothing."""
    fed = sum(report.fed for report in reports)
    return f"\n{fed:,} tasks were fed before that; {how_to_go_on(reports[-1])}" if fed else ""


def _dry_run(places: list[Place], settings: Settings, total: int | None, args: argparse.Namespace) -> int:
    from dlconsole.services import feeder

    reports: dict[Place, FeedReport] = {}
    first: list[bytes] = []
    left: int | None = args.limit
    with stop_event() as stopped, progress(total, len(places), quiet=args.json) as draw:
        for place in places:

            def on_progress(report: FeedReport, place: Place = place) -> bool:
                reports[place] = report
                draw(reports.values(), "")
                return not stopped.is_set()

            def on_tasks(items: list[bytes]) -> None:
                first.extend(items[: _PREVIEW - len(first)])

            def on_columns(columns: Columns, place: Place = place) -> None:
                _say(f"{place}: {columns.words()}")

            reports[place] = feeder.count(place, settings, on_progress, on_tasks, on_columns, left)
            if left is not None:
                left -= reports[place].tasks
            if stopped.is_set() or left == 0:
                break
    if first and not args.json:
        print("The first tasks would be:")
        for item in first:
            print("  " + printable(item.decode()))
    print_result(reports, settings, as_json=args.json, dry_run=True, limit_reached=left == 0)
    return 130 if any(report.stopped for report in reports.values()) else 0
