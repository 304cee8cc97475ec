"""The host we run on, as the fleet sees it: name, address, disk, CPU, memory and network."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import msgspec
import psutil
import redis

from dlconsole.model import HostStats
from dlconsole.services.disk import DiskUsage, existing, usage_of
from dlconsole.services.keys import LEGACY_DISK, Keys
from dlconsole.settings import Settings

GIB: Final = 2**30
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
    """Takes samples; speeds are over the time since the last one. `store` is the folder whose
    filesystem is reported.
    """

    def __init__(self, settings: Settings) -> None:
        self._store = settings.worker.store_dir
        self._disk = DiskUsage(0, 0, 0, 0, 0)
        self._ip = host_ip(settings)
        self._sent, self._received = _network_bytes()
        self._at = time.monotonic()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def sample(self, at_ms: int) -> HostStats:
        """The host now; `at_ms` is the server's clock."""
        with suppress(OSError):  # it cannot be asked for now: then what it said last
            self._disk = usage_of(existing(self._store))
        disk = self._disk
        memory = psutil.virtual_memory()
        now = time.monotonic()
        elapsed_s = max(now - self._at, 1e-3)
        sent, received = _network_bytes()
        stats = HostStats(
            ip=self._ip,
            at_ms=at_ms,
            store=str(self._store.absolute()),
            disk_total_bytes=disk.total_bytes,
            disk_used_bytes=disk.used_bytes,
            disk_free_bytes=disk.free_bytes,
            inodes_total=disk.inodes_total,
            inodes_free=disk.inodes_free,
            cpu_percent=psutil.cpu_percent(),
            cpus=psutil.cpu_count() or 0,
            mem_total_bytes=memory.total,
            mem_used_bytes=memory.total - memory.available,
            net_sent_per_s=max(0, sent - self._sent) / elapsed_s,
            net_recv_per_s=max(0, received - self._received) / elapsed_s,
        )
        self._sent, self._received, self._at = sent, received, now
        return stats


def publish(client: redis.Redis, keys: Keys, name: str, stats: HostStats) -> None:
    """Write the host's record, and its used GiB where legacy workers look for it."""
    pipe = client.pipeline(transaction=False)
    pipe.hset(keys.hosts, name, msgspec.json.encode(stats))
    pipe.hset(LEGACY_DISK, stats.ip.replace(".", "_"), str(stats.disk_used_bytes // GIB))
    pipe.execute()


def _network_bytes() -> tuple[int, int]:
    counters = psutil.net_io_counters()
    return (counters.bytes_sent, counters.bytes_recv) if counters else (0, 0)
