"""The row of https: CPU time a fetch where every fetch is of a host that was never asked before.

Each is a new connection with a whole handshake, verified against certifi's authorities and the rig's own. The
worker looks every name up in a name server of the rig; the bare loop is told the address and spared that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import certifi
import trustme

from bench.contenders import Order
from bench.fetch_rig import LOOPBACK, Bench, Errand, Row, by_cpu, compared, in_turns
from bench.rig import Ratio
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
    ):
        urls = bench.url_file(
            "tls", [f"https://h{i}.{_DOMAIN}:{port}{picture_path(i)}" for i in range(_COUNT)]
        )
        fetch = FetchSettings(allow_networks=LOOPBACK, ca_file=trusted)
        errand = Errand(urls, _COUNT, n, fetch, DnsSettings(resolvers=(resolver,)))
        order = Order(
            *("epoll", str(urls), _COUNT, str(bench.memory), n),
            connect_to=tuple(f"{address}:{port}" for address in ADDRESSES),
            ca_file=str(trusted),
        )
        runs = in_turns(
            {
                "worker": lambda: bench.worker(errand, bench.memory),
                "libcurl": lambda: bench.contender(order),
            },
            bench.args.rounds,
        )
    yield compared(ROWS[0], Ratio(_WHAT, by_cpu(runs, "worker", "libcurl"), _MOST, at_most=True), runs)


def _certificate(place: Path) -> tuple[Certificate, Path]:
    """One for every name of the domain; and whom to trust: as many authorities as there are in earnest."""
    authority = trustme.CA()
    issued = authority.issue_cert(f"*.{_DOMAIN}")
    chain, key, trusted = place / "chain.pem", place / "key.pem", place / "trusted.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    trusted.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    return Certificate(chain, key), trusted
