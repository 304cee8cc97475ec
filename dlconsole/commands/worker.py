"""Headless downloaders: claim tasks, fetch, check, store, report. No terminal needed.

SIGTERM, SIGINT or SIGHUP ends them cleanly: nothing more is claimed, running fetches may finish
within the drain deadline, the rest goes back to the queue. A second signal ends them at once.
Under nohup, SIGHUP is ignored.

example:
  dlconsole --worker --processes 4 --concurrency 128 --store /data --redis redis://10.0.0.5/0
"""

from __future__ import annotations

import argparse
import signal
import threading
from types import FrameType

from dlconsole.commands.common import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments; a `dest` with a dot is a settings key."""
    work = parser.add_argument_group("work")
    work.add_argument("--processes", dest="worker.processes", metavar="N", help="worker processes (1)")
    work.add_argument(
        "--concurrency", dest="worker.concurrency", metavar="N", help="fetches at once in each process (64)"
    )
    work.add_argument(
        "--engine",
        dest="worker.engine",
        choices=("curl", "requests"),
        help="what fetches: libcurl, or requests in threads, several times slower (curl)",
    )
    work.add_argument("--store", dest="worker.store_dir", metavar="DIR", help="where images go (./store)")
    work.add_argument("--until-empty", action="store_true", help="end when the queue is empty")
    limits = parser.add_argument_group(
        "limits of one fetch",
        "What each ends with is the failure kind of the task. TIME: 30, 1.5s, 2m. SIZE: 512, 32MiB. "
        "No cookies are kept, no .netrc is read.",
    )
    limits.add_argument(
        "--deadline",
        dest="fetch.deadline_s",
        metavar="TIME",
        help="from connecting to the last byte, redirects included, names not: timeout (30s)",
    )
    limits.add_argument(
        "--connect-timeout",
        dest="fetch.connect_timeout_s",
        metavar="TIME",
        help="TCP and TLS, at each hop: timeout (10s)",
    )
    limits.add_argument(
        "--dns-timeout",
        dest="dns.timeout_s",
        metavar="TIME",
        help="one name, all tries together: dns (5s)",
    )
    limits.add_argument(
        "--resolver",
        dest="dns.resolvers",
        action="append",
        metavar="HOST:PORT",
        help="name server to ask instead of this host's, by its address, with or without a port; IPv6 in "
        "brackets: [2001:db8::1]:53; may be given several times",
    )
    limits.add_argument(
        "--min-rate",
        dest="fetch.min_bytes_per_s",
        metavar="SIZE",
        help="slowest body that goes on, bytes a second: timeout (512); 0: any",
    )
    limits.add_argument(
        "--min-rate-window",
        dest="fetch.min_rate_window_s",
        metavar="TIME",
        help="over how long that is measured, the wait for the first byte included (15s)",
    )
    limits.add_argument(
        "--max-bytes",
        dest="fetch.max_bytes",
        metavar="SIZE",
        help="largest body, whatever its length is said to be; nothing is unpacked: too_large (32MiB)",
    )
    limits.add_argument(
        "--buffer",
        dest="worker.buffer_bytes",
        metavar="SIZE",
        help="memory for the bodies of all fetches of a process; what is larger than its share goes on in a "
        "file, and fails nothing (32MiB)",
    )
    limits.add_argument(
        "--max-headers",
        dest="fetch.max_header_bytes",
        metavar="SIZE",
        help="headers of one answer, trailers included: connect (64KiB)",
    )
    limits.add_argument(
        "--max-redirects",
        dest="fetch.max_redirects",
        metavar="N",
        help="redirects followed, each checked as the first URL was: redirects (5)",
    )
    limits.add_argument(
        "--allow-ports",
        dest="fetch.allow_ports",
        metavar="LIST",
        help="ports that may be fetched from, others are blocked_address (80,443)",
    )
    limits.add_argument(
        "--allow-network",
        dest="fetch.allow_networks",
        action="append",
        metavar="CIDR",
        help="fetch also from this network, on every port; what is not public is blocked_address, looked at "
        "when connecting; may be given several times",
    )
    limits.add_argument(
        "--proxy",
        dest="fetch.proxy",
        metavar="URL",
        help="forward proxy for every fetch; not the environment's (none)",
    )
    limits.add_argument(
        "--ca-file",
        dest="fetch.ca_file",
        metavar="FILE",
        help="certificate authorities to trust for https (certifi's)",
    )
    checks = parser.add_argument_group("checks of an image")
    checks.add_argument(
        "--verify",
        dest="worker.verify",
        metavar="HOW",
        help="decode: decode every image before it is stored, in processes that bombs, hangs and crashes may "
        "end; off: only its first bytes and its structure are checked (off)",
    )
    checks.add_argument(
        "--max-pixels",
        dest="worker.max_pixels",
        metavar="N",
        help="most pixels to decode: not_image (64000000)",
    )
    checks.add_argument(
        "--verify-timeout",
        dest="worker.verify_timeout_s",
        metavar="TIME",
        help="decoding one image: not_image (10s)",
    )
    checks.add_argument(
        "--verify-memory",
        dest="worker.verify_memory_bytes",
        metavar="SIZE",
        help="memory of each decoding process: not_image (1GiB)",
    )
    checks.add_argument(
        "--verify-processes",
        dest="worker.verify_processes",
        metavar="N",
        help="decoding processes of each worker process (2)",
    )
    checks.add_argument(
        "--verify-hash",
        dest="worker.verify_hash",
        metavar="NAME",
        help="md5 or sha256: compare the body with its task's 'hash': hash_mismatch (off)",
    )
    checks.add_argument(
        "--keep-mismatched",
        dest="worker.keep_mismatched",
        action="store_true",
        default=None,
        help="keep bodies with another hash, in .dlconsole-mismatched below the store",
    )
    keeping = parser.add_argument_group("what is kept")
    keeping.add_argument(
        "--layout",
        dest="worker.layout",
        metavar="HOW",
        help="hourly: a folder YYYYMMDDHH in front of every path, as legacy downloaders do (as_fed)",
    )
    keeping.add_argument(
        "--ext",
        dest="worker.ext",
        metavar="HOW",
        help="real: names end as the format that was found, not as the list says (manifest)",
    )
    keeping.add_argument(
        "--no-ledger",
        dest="ledger.enabled",
        action="store_false",
        default=None,
        help="write down no outcomes: captions and other columns then stay in Redis until their task ends",
    )
    keeping.add_argument(
        "--digests",
        dest="ledger.digests",
        metavar="WHICH",
        help="sha256, md5 or both: digests of each image, in the ledger (none)",
    )
    manners = parser.add_argument_group("manners")
    manners.add_argument(
        "--per-host",
        dest="fetch.per_host",
        metavar="N",
        help="requests to one host at once, redirects included, in each process; robots.txt counts apart (8)",
    )
    manners.add_argument(
        "--per-host-rate",
        dest="fetch.per_host_per_s",
        metavar="N",
        help="most requests to one host a second, redirects included, in each process; robots.txt is not "
        "counted (0: no limit)",
    )
    manners.add_argument(
        "--park",
        dest="fetch.park_s",
        metavar="TIME",
        help="how long the fleet leaves a host alone that answers 429 or 503 and says no time: the first "
        "pause (10s), doubled up to retry.max_s while it goes on; refused six times in a row, pause after "
        "pause, it is given up: its tasks then lose attempts",
    )
    manners.add_argument(
        "--robots",
        dest="fetch.robots",
        action="store_true",
        default=None,
        help="read each site's robots.txt, 500 KiB of it, before its first image and once a day: what it "
        "disallows is opt_out; where it cannot be had, neither can the site's images (off)",
    )
    manners.add_argument(
        "--contact",
        dest="fetch.contact",
        metavar="TEXT",
        help="mail address or page, for the sites' owners (none)",
    )
    manners.add_argument(
        "--user-agent",
        dest="fetch.user_agent",
        metavar="TEXT",
        help="what it calls itself (dlconsole (dataset downloader))",
    )
    ending = parser.add_argument_group("ending")
    ending.add_argument(
        "--drain", dest="worker.drain_s", metavar="TIME", help="how long running fetches may take (20s)"
    )


def more_help() -> str:
    """The settings of a worker that have no flag, section by section, with their defaults."""
    import textwrap

    from dlconsole.settings import Settings, descriptions

    flags = argparse.ArgumentParser()
    configure(flags)
    with_flag = {action.dest for action in flags._actions}  # noqa: SLF001  (argparse has no public list)
    lines = [
        "settings without a flag: in the file, or as variables such as DLCONSOLE_WORKER__BATCH.",
        "Names in _s are a TIME, those in _bytes a SIZE; the last words are the default.",
    ]
    for section in ("worker", "fetch", "dns", "retry", "ledger", "guard"):
        lines.append("")
        model = type(getattr(Settings(), section))
        texts = descriptions(model)
        for name, field in model.model_fields.items():
            if f"{section}.{name}" not in with_flag:
                what = f"{texts[name]} ({_shown(name, field.default)})".replace("`", "")
                lines += textwrap.wrap(
                    what, 100, initial_indent=f"  {section + '.' + name:<23} ", subsequent_indent=" " * 26
                )
    return "\n".join(lines)


def _shown(name: str, default: object) -> str:
    """A default with its unit."""
    if isinstance(default, bool):
        return str(default).lower()
    if not isinstance(default, (int, float)):
        return str(default) if default else "none"
    return f"{default:.12g}{'s' if name.endswith('_s') else ''}"


def run(args: argparse.Namespace) -> int:
    """Supervise the workers until they end; 0 when all ended as they should."""
    from dlconsole import log
    from dlconsole.services.supervisor import WorkerGroup, stop_signals
    from dlconsole.settings import names_contact, redis_name

    loaded = load_settings(args)
    logger = log.configure(loaded.settings.log)
    settings = loaded.settings
    if not settings.redis:  # else nothing here talks to Redis, and its library takes long to load
        from dlconsole.services import embedded

        settings = embedded.resolve(settings)
    logger.info(
        "starting",
        redis=redis_name(loaded.settings),
        dataset=settings.dataset,
        processes=settings.worker.processes,
        store=str(settings.worker.store_dir.absolute()),
    )
    if not names_contact(settings.fetch):
        logger.warning("the sites' owners cannot reach you", todo="set fetch.contact (--contact)")
    group = WorkerGroup(settings, logger, until_empty=args.until_empty)
    asked = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        group.stop("kill" if asked.is_set() else "drain")
        asked.set()

    for number in stop_signals():
        signal.signal(number, handle)
    while not group.ended and not asked.is_set():
        group.tend()
        asked.wait(0.2)
    group.wait()
    return 1 if group.failed else 0
