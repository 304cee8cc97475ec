"""The row of https: CPU time a fetch where every fetch is of a host that was never asked before.

Each is a new connection with a whole handshake, verified against certifi's authorities and the rig's own. Every
name is looked up in a name server of the rig, by the worker's resolver and by libcurl's own. Beside it, a bare loop
that is told the addresses and looks up nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import certifi
import trustme

from bench.contenders import Order
from bench.fetch_rig import LOOPBACK, Bench, Errand, by_cpu, compared, in_turns, system_resolver
from bench.rig import Ratio
from bench.rows import Row
from bench.webs import ADDRESSES, Certificate, name_server, nginx, picture_path
from dlconsole.settings import DnsSettings, FetchSettings

ROWS: Final = ("tls",)
_DOMAIN: Final = "tls.test"
_WHAT: Final = "https, CPU a fetch: worker / bare loop"
_MOST: Final = 1.2
_COUNT: Final = 4000


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    certificate, trusted = _certificate(bench.memory)
    n = bench.args.concurrency
    with (
        nginx(bench.pictures, bench.cores.server, certificate=certificate) as port,
        name_server(bench.cores.server) as resolver,
        system_resolver(bench) as alone,
    ):
        urls = bench.url_file(
            "tls", [f"https://h{i}.{_DOMAIN}:{port}{picture_path(i)}" for i in range(_COUNT)]
        )
        fetch = FetchSettings(allow_networks=LOOPBACK, ca_file=trusted)
        errand = Errand(urls, _COUNT, n, fetch, DnsSettings(resolvers=(resolver,)))
        order = Order("epoll", str(urls), _COUNT, str(bench.memory), n, ca_file=str(trusted))
        told = replace(order, connect_to=tuple(f"{address}:{port}" for address in ADDRESSES))
        runs = in_turns(
            {
                "worker": lambda: bench.worker(errand, bench.memory),
                "libcurl": lambda: bench.contender(order, prefix=alone),
                "libcurl, told": lambda: bench.contender(told),
            },
            bench.args.rounds,
        )
    ratio = Ratio(_WHAT, by_cpu(runs, "worker", "libcurl"), _MOST, at_most=True)
    beside = Ratio("worker / a bare loop that is told the addresses", by_cpu(runs, "worker", "libcurl, told"))
    yield compared(ROWS[0], ratio, runs, [beside.line()])


def _certificate(place: Path) -> tuple[Certificate, Path]:
    """One for every name of the domain; and whom to trust: as many authorities as there are in earnest."""
    authority = trustme.CA()
    issued = authority.issue_cert(f"*.{_DOMAIN}")
    chain, key, trusted = place / "chain.pem", place / "key.pem", place / "trusted.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    trusted.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    return Certificate(chain, key), trusted
