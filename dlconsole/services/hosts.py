"""The host we run on, as the fleet sees it: name, address, disk, CPU, memory and network."""

from __future__ import annotations

import socket
import time
from typing import Final
from urllib.parse import urlsplit

import msgspec
import psutil
import redis

from dlconsole.model import HostStats
from dlconsole.services.disk import DiskReading
from dlconsole.services.keys import LEGACY_DISK, Keys
from dlconsole.settings import Settings

GIB: Final = 2**30
_DISK_FIELDS: Final = (
    "disk_at_ms",
    "disk_total_bytes",
    "disk_used_bytes",
    "disk_free_bytes",
    "inodes_total",
    "inodes_free",
)
_ANY_PUBLIC_ADDRESS: Final = ("192.0.2.1", 9)
"""TEST-NET-1 (RFC 5737): a UDP connect sends nothing, it only asks the routing table."""


def host_name(settings: Settings) -> str:
    """The name this host goes by."""
    return settings.worker.host_name or socket.gethostname()


def host_ip(settings: Settings) -> str:
    """The address this host goes by in the legacy disk hash: the one that it reaches Redis from, or
    its outward one where Redis is on this machine.
    """
    if settings.worker.host_ip:
        return settings.worker.host_ip
    parts = urlsplit(settings.redis)
    targets = [(parts.hostname, parts.port or 6379)] if parts.hostname else []
    for target in (*targets, _ANY_PUBLIC_ADDRESS):
        try:
            family = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0][0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                address = str(probe.getsockname()[0])
        except OSError:
            continue
        if not address.startswith("127.") and address != "::1":
            return address
    return "127.0.0.1"


class HostSampler:
    """Takes samples; speeds are over the time since the last one. Never asks the store's filesystem: that
    may hang, and with it who asks.
    """

    def __init__(self, settings: Settings) -> None:
        self._store = settings.worker.store_dir
        self._ip = host_ip(settings)
        self._sent, self._received = _network_bytes()
        self._at = time.monotonic()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def sample(self, at_ms: int, disk: DiskReading | None) -> HostStats:
        """The host now; `at_ms` is the server's clock, `disk` what its filesystem said last, if anything."""
        memory = psutil.virtual_memory()
        now = time.monotonic()
        elapsed_s = max(now - self._at, 1e-3)
        sent, received = _network_bytes()
        stats = HostStats(
            ip=self._ip,
            at_ms=at_ms,
            store=str(self._store.absolute()),
            cpu_percent=psutil.cpu_percent(),
            cpus=psutil.cpu_count() or 0,
            mem_total_bytes=memory.total,
            mem_used_bytes=memory.total - memory.available,
            net_sent_per_s=max(0, sent - self._sent) / elapsed_s,
            net_recv_per_s=max(0, received - self._received) / elapsed_s,
        )
        self._sent, self._received, self._at = sent, received, now
        if disk is None:
            return stats
        return msgspec.structs.replace(
            stats,
            disk_at_ms=at_ms - round(1000 * (now - disk.read_at)),
            disk_total_bytes=disk.usage.total_bytes,
            disk_used_bytes=disk.usage.used_bytes,
            disk_free_bytes=disk.usage.free_bytes,
            inodes_total=disk.usage.inodes_total,
            inodes_free=disk.usage.inodes_free,
        )


def publish(client: redis.Redis, keys: Keys, name: str, stats: HostStats) -> None:
    """Write the host's record, and its used GiB where legacy workers look for it. Where this process does
    not know the disk (it has begun just now, or the disk hangs), what the host said before is kept.
    """
    if not stats.disk_at_ms:
        stats = _with_last_disk(client, keys, name, stats)
    pipe = client.pipeline(transaction=False)
    pipe.hset(keys.hosts, name, msgspec.json.encode(stats))
    pipe.hset(LEGACY_DISK, stats.ip.replace(".", "_"), str(stats.disk_used_bytes // GIB))
    pipe.execute()


def _with_last_disk(client: redis.Redis, keys: Keys, name: str, stats: HostStats) -> HostStats:
    record = client.hget(keys.hosts, name)
    try:
        last = msgspec.json.decode(record or b"", type=HostStats)
    except (msgspec.DecodeError, UnicodeDecodeError):  # there is none, or it is not ours
        return stats
    return msgspec.structs.replace(stats, **{field: getattr(last, field) for field in _DISK_FIELDS})


def _network_bytes() -> tuple[int, int]:
    counters = psutil.net_io_counters()
    return (counters.bytes_sent, counters.bytes_recv) if counters else (0, 0)
