"""What can be set: one model, each field with its type, bounds and meaning.

Where the values come from is `config.py`'s matter; `docs/settings.md` is made from this module.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import types
import typing
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Annotated, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from dlconsole.model import DATASET_RULE, PresetName, is_dataset_name
from dlconsole.units import BYTES_RULE, SECONDS_RULE, parse_bytes, parse_seconds

_LEAST_BODY_BYTES: Final = 64 * 2**10
"""Smaller pieces would cost more to write than they save in memory."""
ENV_PREFIX: Final = "DLCONSOLE_"
NESTED: Final = "__"

Colour = Literal["default", "red", "orange", "yellow", "green", "cyan", "blue", "magenta"]
_REDIS_OPTIONS: Final = (
    "db",
    "username",
    "password",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
REDIS_RULE: Final = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///path/to/socket, with user and password as "
    f"USER:PASSWORD@ (their special characters as %XX) and options ?name=value of {', '.join(_REDIS_OPTIONS)}"
)
PROXY_RULE: Final = "http://HOST:PORT, https://HOST:PORT or socks5h://HOST:PORT"
_USER_INFO: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%(?!0[0AD])[0-9A-F]{2})*", re.IGNORECASE)
"""A user and a password as RFC 3986, 3.2.1 has them: what else is in them stands as %XX. libcurl would refuse
others with a message that holds them, or take a part of a password for the host.
"""
_TEMPLATE_FIELDS: Final = ("ds", "sha256", "ab", "cd", "ext")
TEMPLATE_RULE: Final = "a path below the store with {sha256} in it, made of " + " ".join(
    f"{{{f}}}" for f in _TEMPLATE_FIELDS
)
LAYOUTS: Final = {
    "sharded": "/{ds}/images/{ab}/{cd}/{sha256}.jpg",
    "flat": "/{ds}/images/{sha256}.jpg",
}
"""Where images go by `feed.layout`, as a path template."""

USER_AGENT_RULE: Final = "1 to 400 printable ASCII characters"
CONTACT_RULE: Final = "a mail address or an http(s) URL, in up to 200 printable ASCII characters"
IP_RULE: Final = "an address such as '10.1.2.3'"
NETWORK_RULE: Final = "a network such as '10.0.0.0/8' or 'fd00::/8'"
RESOLVER_RULE: Final = "an address with or without port, such as '10.0.0.2' or '[fd00::2]:53'"
PORTS_RULE: Final = "a list of ports, 1 to 65535, such as '80,443,8080'"


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004  (pydantic reports ValueError only)
    return value


def _check_redis_url(url: str) -> str:
    if not url:
        return url
    try:
        parts = urlsplit(url)
        # '#' and a second '@' are a password's that was not written as %XX: it would be shown.
        usable = parts.port != 0 and not parts.fragment and "@" not in parts.path + parts.query
        options = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    except ValueError:  # a port that is no number, a bracket that is not closed
        raise ValueError(f"expected {REDIS_RULE}") from None
    if parts.scheme == "unix":
        usable = usable and parts.path.startswith("/")
    else:
        database = parts.path.strip("/")
        usable = usable and parts.scheme in {"redis", "rediss"} and bool(parts.hostname)
        usable = usable and (not database or (database.isascii() and database.isdecimal()))
    if not usable or not options <= set(_REDIS_OPTIONS) or not url.isprintable():
        raise ValueError(f"expected {REDIS_RULE}")
    return url


def _check_dataset(name: str) -> str:
    if not is_dataset_name(name):
        raise ValueError(f"expected {DATASET_RULE}")
    return name


def _check_template(template: str) -> str:
    if not template:
        return template
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        raise ValueError(f"expected {TEMPLATE_RULE}") from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    plain = all(name in _TEMPLATE_FIELDS and not spec and not conversion for name, spec, conversion in fields)
    filled = "".join(text + ("x" if name is not None else "") for text, name, _, _ in pieces)
    usable = plain and any(name == "sha256" for name, _, _ in fields) and filled.isprintable()
    parts = filled.removeprefix("/").split("/")
    # Names that begin so are the store's own.
    if not usable or any(part in {"", ".", ".."} for part in parts) or parts[0].startswith(".dlconsole"):
        raise ValueError(f"expected {TEMPLATE_RULE}")
    return template


def _check_proxy(url: str) -> str:
    if not url:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and parts.scheme in {"http", "https", "socks5h"} and bool(parts.hostname)
        usable = usable and not parts.query and not parts.fragment and parts.path in {"", "/"}
        usable = usable and _USER_INFO.fullmatch(parts.netloc.rpartition("@")[0]) is not None
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        user_info = "with user and password as USER:PASSWORD@ (their special characters as %XX)"
        raise ValueError(f"expected {PROXY_RULE}, {user_info}")
    return url


def _check_user_agent(text: str) -> str:
    if not (1 <= len(text) <= 400 and text.isascii() and text.isprintable()):
        raise ValueError(f"expected {USER_AGENT_RULE}")
    return text


def _check_contact(text: str) -> str:
    plain = len(text) <= 200 and text.isascii() and text.isprintable() and not set(text) & set(" ()<>")
    is_mail = re.fullmatch(r"[^@:/]+@[^@:/]+\.[^@:/]+", text) is not None
    if text and not (plain and (is_mail or re.match("https?://.", text))):
        raise ValueError(f"expected {CONTACT_RULE}")
    return text


def _check_ip(text: str) -> str:
    try:
        return str(ip_address(text)) if text else text
    except ValueError:
        raise ValueError(f"expected {IP_RULE}") from None


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"expected {NETWORK_RULE}") from None


def _split_resolvers(value: object) -> object:
    return _split_list(value)


def _check_resolver(text: str) -> str:
    """As c-ares takes it: `1.2.3.4`, `1.2.3.4:53`, `[2001:db8::1]:53`."""
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    try:
        address = ip_address(host)
    except ValueError:
        raise ValueError(f"expected {RESOLVER_RULE}") from None
    if colon != ("" if not port else ":") or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ValueError(f"expected {RESOLVER_RULE}")
    shown = f"[{address}]" if address.version == 6 else str(address)
    return f"{shown}:{port or 53}"


def _split_ports(value: object) -> list[int]:
    ports = _split_list(value)
    texts = [str(port) for port in ports] if isinstance(ports, (list, tuple)) else [str(ports)]
    if not all(text.isdecimal() and 0 < int(text) < 65536 for text in texts):
        raise ValueError(f"expected {PORTS_RULE}")
    return [int(text) for text in texts]


def _absolute(value: object) -> object:
    """A folder, `~` expanded; a relative one is taken from where the program was started."""
    if not isinstance(value, (str, Path)):
        return value
    if not str(value) or not str(value).isprintable():
        raise ValueError("expected a path")
    try:
        return str(Path(value).expanduser().absolute())  # text, which a path is in JSON too
    except RuntimeError:
        raise ValueError("expected a path; this ~user has no home directory") from None


_RULES: Final[dict[object, str]] = {
    parse_seconds: f"{SECONDS_RULE};",
    parse_bytes: f"{BYTES_RULE};",
    _check_redis_url: REDIS_RULE,
    _check_proxy: PROXY_RULE,
    _check_dataset: DATASET_RULE,
    _check_template: TEMPLATE_RULE,
    _check_user_agent: USER_AGENT_RULE,
    _check_contact: CONTACT_RULE,
    _check_ip: IP_RULE,
    _split_list: f"a list, each {NETWORK_RULE}",
    _split_resolvers: f"a list, each {RESOLVER_RULE}",
    _split_ports: PORTS_RULE,
}
"""What each check takes, for messages and for the list of settings."""

Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Count = Annotated[int, BeforeValidator(_not_bool)]
Folder = Annotated[Path, BeforeValidator(_absolute)]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
Dataset = Annotated[str, AfterValidator(_check_dataset)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_check_network)], ...], BeforeValidator(_split_list)]
Resolvers = Annotated[
    tuple[Annotated[str, AfterValidator(_check_resolver)], ...], BeforeValidator(_split_resolvers)
]
Ports = Annotated[tuple[int, ...], BeforeValidator(_split_ports)]


class Section(BaseModel):
    """A table of the settings file. What stands below a field says what it is, see `descriptions`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ContextSettings(Section):
    """A named connection, `[contexts.NAME]`; what it leaves out comes from the top of the file."""

    redis: RedisUrl | None = None
    """The Redis server of this context."""
    dataset: Dataset | None = None
    """The dataset of this context."""
    read_only: bool | None = None
    """Look, but change nothing."""
    colour: Colour | None = None
    """The colour of the header, so that prod looks like prod."""


class WorkerSettings(Section):
    """`[worker]`: the headless downloaders."""

    store_dir: Folder = Field(default_factory=lambda: Path("store").absolute())
    """Folder that the images go to; each task's path is taken from here."""
    processes: Count = Field(default=1, ge=1, le=256)
    """Worker processes on this host."""
    engine: Literal["curl", "requests"] = "curl"
    """What fetches: libcurl, or a thread for each fetch with a `requests` session, several times slower."""
    concurrency: Count = Field(default=64, ge=1, le=4096)
    """Fetches at the same time, in each process."""
    buffer_bytes: Bytes = Field(default=32 * 2**20, ge=2**20, le=2**40)
    """Memory for all bodies of a process; one beyond its share (64 KiB or more) goes on in a file."""
    batch: Count = Field(default=200, ge=1, le=5000)
    """Most tasks in one claim, and most outcomes in one ack."""
    lease_s: Seconds = Field(default=30.0, ge=2, le=3600)
    """How long a session may be silent before what it holds is no longer its own."""
    heartbeat_s: Seconds = Field(default=5.0, ge=0.1, le=600)
    """How often a session renews its lease and reports; at least three times a lease, whatever is set."""
    drain_s: Seconds = Field(default=20.0, ge=0, le=3600)
    """How long running fetches may still take after SIGTERM; the rest goes back to the queue."""
    verify: Literal["off", "decode"] = "off"
    """`decode`: every image is decoded before it is stored, in a process that may be killed."""
    max_pixels: Count = Field(default=64_000_000, ge=1, le=2**31 - 1)
    """Most pixels of an image that is decoded; more is `not_image`. Only with `verify = "decode"`."""
    verify_timeout_s: Seconds = Field(default=10.0, ge=0.1, le=600)
    """How long decoding one image may take; more is `not_image`."""
    verify_memory_bytes: Bytes = Field(default=2**30, ge=256 * 2**20, le=2**40)
    """Most memory of one decoding process, its programs included; an image that needs more is `not_image`."""
    verify_processes: Count = Field(default=2, ge=1, le=64)
    """Decoding processes of each worker process."""
    verify_hash: Literal["off", "md5", "sha256"] = "off"
    """What to compare with a task's `hash`, where it has one, in hex; another one is `hash_mismatch`."""
    keep_mismatched: bool = False
    """Whether bodies with another hash are kept, below `.dlconsole-mismatched` in the store."""
    layout: Literal["as_fed", "hourly"] = "as_fed"
    """`hourly`: a folder `YYYYMMDDHH`, local time, goes in front of every path, as legacy downloaders do."""
    ext: Literal["manifest", "real"] = "manifest"
    """`real`: a path ends as the format that was found (`.jpg`, `.webp` …), whatever the list says."""
    host_name: str = ""
    """The name this host goes by; empty: its host name."""
    host_ip: Annotated[str, AfterValidator(_check_ip)] = ""
    """The address it goes by in the legacy disk hash; empty: the one that reaches Redis."""

    @property
    def body_bytes(self) -> int:
        """How much of one body is kept in memory."""
        return max(_LEAST_BODY_BYTES, self.buffer_bytes // self.concurrency)


class RetrySettings(Section):
    """`[retry]`: tasks that failed in a way that may heal."""

    max_attempts: Count = Field(default=3, ge=1, le=100)
    """How often a task is tried in all."""
    base_s: Seconds = Field(default=30.0, gt=0, le=86400)
    """Longest wait before the second attempt; doubled for each one after."""
    max_s: Seconds = Field(default=3600.0, gt=0, le=604_800)
    """Longest wait before any attempt."""
    retry_after_s: Seconds = Field(default=3600.0, ge=0, le=604_800)
    """Longest wait that a server's Retry-After may ask for, for the task and for its host."""
    max_delayed: Count = Field(default=1_000_000, ge=0, le=100_000_000)
    """Most tasks that wait for a retry at once; more fail for good."""


class LedgerSettings(Section):
    """`[ledger]`: the record of every outcome, in the store."""

    enabled: bool = True
    """Whether outcomes are written down, one line each, in `<dataset>/ledger` below the store."""
    max_file_bytes: Bytes = Field(default=256 * 2**20, ge=4096, le=2**40)
    """A file that would become larger is followed by another one."""
    digests: Literal["none", "sha256", "md5", "both"] = "none"
    """Which digests of an image's bytes are worked out and written down with it."""

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The digests that are asked for."""
        return {"none": (), "both": ("sha256", "md5")}.get(self.digests, (self.digests,))


class GuardSettings(Section):
    """`[guard]`: when downloads wait for the store's filesystem, and when a worker gives itself up."""

    max_used_bytes: Bytes = Field(default=0, ge=0, le=2**63 - 1)
    """Most bytes used on the store's filesystem (the legacy `stop_threshold`); 0: no such limit."""
    max_used_percent: float = Field(default=98.0, ge=1, le=100)
    """Most percent used."""
    min_free_bytes: Bytes = Field(default=0, ge=0, le=2**63 - 1)
    """Least bytes free; 0: no such limit."""
    margin_percent: float = Field(default=1.0, ge=0, le=50)
    """How far below a limit, in percent, the filesystem must be before downloads go on."""
    check_s: Seconds = Field(default=3.0, ge=0.1, le=600)
    """How often the filesystem is looked at; after a write that failed, the shortest time to the next."""
    stall_s: Seconds = Field(default=120.0, ge=15, le=86400)
    """A worker that has not moved for this long (a hung disk, a fault) gives its tasks back and ends."""


class FetchSettings(Section):
    """`[fetch]`: limits of one fetch."""

    deadline_s: Seconds = Field(default=30.0, gt=0, le=3600)
    """Hard limit on one task, redirects included; waiting for names and for a slot is not counted."""
    connect_timeout_s: Seconds = Field(default=10.0, gt=0, le=600)
    """Limit on TCP and TLS together, at each hop; a name has `dns.timeout_s`."""
    max_bytes: Bytes = Field(default=32 * 2**20, ge=1, le=2**31 - 1)
    """Largest body that is stored; more is `too_large`."""
    min_bytes_per_s: Bytes = Field(default=512, ge=0, le=2**30)
    """Slowest fetch that goes on: below it for `min_rate_window_s` is `timeout`. 0: no limit."""
    min_rate_window_s: Seconds = Field(default=15.0, ge=1, le=600)
    """Over how long `min_bytes_per_s` is measured, waiting for the first byte included."""
    max_header_bytes: Bytes = Field(default=64 * 2**10, ge=1024, le=256 * 2**10)
    """Most bytes of one answer's headers; more is `connect`."""
    max_redirects: Count = Field(default=5, ge=0, le=20)
    """Most redirects followed; of a robots.txt five at least (RFC 9309)."""
    honour_opt_outs: bool = True
    """Whether an answer that reserves its rights (`X-Robots-Tag`, `tdm-reservation`) is `opt_out`."""
    robots: bool = False
    """Whether each site's robots.txt is read before its first image; what it disallows is `opt_out`."""
    user_agent: Annotated[str, AfterValidator(_check_user_agent)] = "dlconsole (dataset downloader)"
    """What the worker calls itself."""
    contact: Annotated[str, AfterValidator(_check_contact)] = ""
    """Where a site's owner reaches you, a mail address or a page; stands behind `user_agent`."""
    per_host: Count = Field(default=8, ge=1, le=4096)
    """Requests to one host at once, redirects included, in each process; `robots.txt` counts apart."""
    per_host_per_s: float = Field(default=0.0, ge=0, le=10_000)
    """Most requests a second to one host, redirects included, in each process; `robots.txt` is not counted.
    0: no limit."""
    park_s: Seconds = Field(default=10.0, ge=0, le=86_400)
    """First pause of a host that answers 429 or 503 without Retry-After; doubled up to `retry.max_s` while it
    goes on, and given up when the fleet was refused six times in a row."""
    proxy: Annotated[str, AfterValidator(_check_proxy)] = ""
    """Forward proxy for every fetch, looked up by the system; empty: none, nor the environment's."""
    ca_file: Folder | None = None
    """File of certificate authorities to trust for https, a proxy's too; none: certifi's."""
    allow_networks: Networks = ()
    """Networks that may be fetched from although they are not public, on every port."""
    allow_ports: Ports = (80, 443)
    """Ports that may be fetched from."""

    @property
    def full_user_agent(self) -> str:
        """What is sent: `user_agent` and the contact behind it."""
        if not self.contact:
            return self.user_agent
        mail = "" if "://" in self.contact else "mailto:"
        return f"{self.user_agent} (+{mail}{self.contact})"


class DnsSettings(Section):
    """`[dns]`: how names are looked up."""

    resolvers: Resolvers = ()
    """Servers to ask, `HOST` or `HOST:PORT`; none: those of this host's resolv.conf."""
    timeout_s: Seconds = Field(default=5.0, gt=0, le=60)
    """Limit on one lookup, with all its tries."""
    lookups: Count = Field(default=4000, ge=1, le=20_000)
    """Most tasks held, in each process, that wait for their hosts' names or for a robots.txt."""
    min_ttl_s: Seconds = Field(default=60.0, ge=0, le=86_400)
    """How long a found address is used at least, whatever the answer allows."""
    max_ttl_s: Seconds = Field(default=3600.0, ge=0, le=86_400)
    """How long a found address is used at most."""
    negative_ttl_s: Seconds = Field(default=120.0, ge=0, le=86_400)
    """How long a name that does not exist is not asked for again; after other failures that is as long as
    they have lasted, 1 to 30 s."""


class FeedSettings(Section):
    """`[feed]`: URL lists to tasks."""

    layout: Literal["sharded", "flat"] = "sharded"
    """`sharded`: `/{ds}/images/{ab}/{cd}/{sha256}.jpg`. `flat`: without `{ab}/{cd}`, as legacy feeders do."""
    path_template: Annotated[str, AfterValidator(_check_template)] = ""
    """A place for images; {ab}, {cd}: the first and second two characters of {sha256}. Empty: none."""
    block: Count = Field(default=2000, ge=1, le=100_000)
    """Tasks pushed in one call."""
    max_url_bytes: Bytes = Field(default=8192, ge=16, le=2**20)
    """Longer URLs are refused as bad rows."""
    format: Literal["auto", "txt", "csv", "tsv", "tsv-quoted", "json", "jsonl", "parquet"] = "auto"
    """Format of the lists; `auto`: as their names end, else the preset's, else plain text."""
    preset: PresetName = ""
    """Data set that the lists are of: their columns, and their format where no name says it."""
    url_column: str = ""
    """Column of the URL; empty: found by its name."""
    caption_column: str = ""
    """Column of the caption; empty: found by its name; `none`: none."""
    id_column: str = ""
    """Column of the id; empty: found by its name; `none`: none."""
    hash_column: str = ""
    """Column of the image's digest; empty: found by its name; `none`: none."""
    ext_column: str = ""
    """Column of the file name's extension; empty: found by its name; `none`: none."""
    keep: str = "small"
    """Other columns that travel along: `small` (values up to `max_column_bytes`), `all`, `none`, or names
    separated by commas."""
    max_column_bytes: Bytes = Field(default=1024, ge=1, le=2**20)
    """Largest value that travels along with `keep = "small"`; caption, id and hash have no such limit."""
    max_row_bytes: Bytes = Field(default=2**20, ge=1024, le=2**26)
    """Longest row of csv, tsv, json, jsonl and parquet; longer ones are bad rows."""
    reject_dir: Folder = Field(default_factory=lambda: Path("feed_rejects").absolute())
    """Folder that bad rows are written to, one file a list that has some."""
    threshold: Count = Field(default=0, ge=0, le=2**53)
    """Feeding stops while the queue has more tasks than this (the legacy `addtask_threshold`); 0: never."""
    shuffle_hosts: bool = False
    """Whether neighbours in the queue are to be of different hosts, within a window of the list."""
    shuffle_window: Count = Field(default=20_000, ge=2, le=1_000_000)
    """Rows of that window; it ends before where its tasks have 64 MiB."""
    dedupe: Literal["off", "file", "bloom"] = "off"
    """Of equal URLs the first is fed: `file` within each list, `bloom` across lists, with a known error."""
    bloom_items: Count = Field(default=100_000_000, ge=1000, le=10**11)
    """URLs that a new Bloom filter is made for: 1.8 bytes each with an error of 0.001."""
    bloom_error: float = Field(default=0.001, ge=1e-9, le=0.5)
    """Share of new URLs that is taken for duplicates when it has so many."""
    temp_dir: Folder | None = None
    """Folder for the table of URLs of `dedupe = "file"`, 32 to 64 bytes a URL; none: below `state_dir`."""
    watch_s: Seconds = Field(default=5.0, ge=0.1, le=3600)
    """How long a list in a watched folder must stay the same before it is fed; so often is looked."""
    done_file: Folder = Field(default_factory=lambda: Path("done_part.txt").absolute())
    """File with the paths of the lists that are done, one a line, as legacy feeders keep it."""

    @property
    def template(self) -> str:
        """Where an image goes: `path_template`, or what the layout says."""
        return self.path_template or LAYOUTS[self.layout]


class ErrorsSettings(Section):
    """`[errors]`: the list of failed tasks."""

    dir: Folder = Field(default_factory=lambda: Path("error_task").absolute())
    """Folder that errors are exported to."""
    batch: Count = Field(default=1000, ge=1, le=10_000)
    """Most errors taken from the list in one call."""
    sample: Count = Field(default=100_000, ge=100, le=10_000_000)
    """Most errors that a summary reads; of more, a sample."""


class ConsoleSettings(Section):
    """`[console]`: the terminal."""

    refresh_s: Seconds = Field(default=2.0, ge=0.25, le=3600)
    """How often the picture is renewed."""


class LogSettings(Section):
    """`[log]`: what is written, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text on a terminal, JSON Lines elsewhere."""


class Settings(BaseModel):
    """Everything that can be set. Every field can be given in the file, by environment
    (`DLCONSOLE_DATASET`, `DLCONSOLE_WORKER__CONCURRENCY`) and most by a flag.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    redis: RedisUrl = ""
    """The Redis server; empty: dlconsole starts one of its own on this machine."""
    dataset: Dataset = "default"
    """The dataset: the prefix of the Redis keys."""
    context: str = ""
    """The context to use when none is named."""
    read_only: bool = False
    """Look, but change nothing."""
    colour: Colour = "default"
    """The colour of the console's header."""
    state_dir: Folder = Field(default_factory=lambda: xdg_dir("XDG_STATE_HOME", ".local/state"))
    """Where the own Redis keeps its data and its log."""
    contexts: dict[str, ContextSettings] = {}
    """Named connections."""
    worker: WorkerSettings = Field(default_factory=WorkerSettings)  # its folder depends on where we are
    retry: RetrySettings = RetrySettings()
    ledger: LedgerSettings = LedgerSettings()
    guard: GuardSettings = GuardSettings()
    fetch: FetchSettings = FetchSettings()
    dns: DnsSettings = DnsSettings()
    feed: FeedSettings = Field(default_factory=FeedSettings)  # as the worker's
    errors: ErrorsSettings = Field(default_factory=ErrorsSettings)  # as the worker's
    console: ConsoleSettings = ConsoleSettings()
    log: LogSettings = LogSettings()


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What each field of a model is: the text that stands below it in the source, on one line.

    Read when somebody asks: pydantic would read it at every start of every process.
    """
    (node,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for pair in pairwise(node.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def rule_of(field: FieldInfo | None) -> str:
    """What a field takes, in words, from its type and its bounds; '' where there is nothing to say."""
    if field is None:
        return ""
    annotation, metadata = field.annotation, list(field.metadata)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is Annotated:
        annotation, *inner = typing.get_args(annotation)
        metadata += inner
    if typing.get_origin(annotation) is Literal:
        return ", ".join(repr(value) for value in typing.get_args(annotation))
    if annotation is bool:
        return "true or false"
    low = next((m.ge for m in metadata if isinstance(m, Ge)), None)
    high = next((m.le for m in metadata if isinstance(m, Le)), None)
    noun = {int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(annotation, "")  # type: ignore[arg-type]
    checks = [m.func for m in metadata if isinstance(m, (BeforeValidator, AfterValidator))]
    noun = next((_RULES[check] for check in checks if check in _RULES), noun)
    if low is not None and high is not None:
        return f"{noun} from {low} to {high}"
    return f"{noun} above 0 and up to {high}" if high is not None else noun


def redis_name(settings: Settings) -> str:
    """Which Redis is in use, in words for a header or a log; never its password."""
    return mask_url(settings.redis) if settings.redis else "own Redis on this machine"


def names_contact(fetch: FetchSettings) -> bool:
    """Whether the User-Agent says how to reach somebody."""
    return "@" in fetch.full_user_agent or "://" in fetch.full_user_agent


def mask_url(url: str) -> str:
    """The URL with its password, also one in the query, replaced by `***`."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "***"
    netloc = parts.netloc
    if password is not None:
        netloc = f"{parts.username or ''}:***@{netloc.rpartition('@')[2]}"
    query = "&".join(
        f"{item.partition('=')[0]}=***" if "pass" in unquote(item.partition("=")[0]).lower() else item
        for item in parts.query.split("&")
    )
    masked = urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))
    return masked if netloc else masked.replace(":/", ":///", 1)


def xdg_dir(variable: str, fallback: str) -> Path:
    """`$variable/dlconsole`, or `~/fallback/dlconsole`; a relative value is ignored, as XDG says."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / fallback) / "dlconsole"
