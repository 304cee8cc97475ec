"""The simulated web as a process of its own, so that it takes no time from the workers it feeds.

`SimulatedWeb` starts `python -m dlconsole.demo.web`, hands it one line of JSON and gets one line back.
Closing that pipe ends the child, so it also ends when its parent dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from dlconsole.demo.answers import Answers, Pace
from dlconsole.demo.behaviour import Shares, behaviour_of, demo_urls, plan_of
from dlconsole.demo.certificates import Authority
from dlconsole.demo.server import WebServer
from dlconsole.errors import DlconsoleError, UsageError

__all__ = ["Shares", "SimulatedWeb", "WebConfig", "behaviour_of", "demo_urls"]

_STOP_S: Final = 5.0
_DESCRIPTORS: Final = 16_384


@dataclass(frozen=True)
class WebConfig:
    """What the web is like. The same config answers every URL the same way, run after run."""

    host: str = "127.0.0.1"
    """The loopback address it listens on."""
    more_hosts: tuple[str, ...] = ()
    """Further loopback addresses, on the same port: other hosts of the web, as far as clients can tell."""
    port: int = 0
    """The port; 0: a free one."""
    shares: Shares = field(default_factory=Shares)
    """How common each behaviour is."""
    seed: int = 0
    """Another seed, another web: other pictures, other URLs that fail."""
    pictures: int = 36
    """How many different pictures it has: each is made at its start. Six have every format."""
    latency_s: float = 0.02
    """Mean time before an answer; each URL has its own, up to four times this."""
    slow_s: tuple[float, float] = (0.5, 1.0)
    """From and to how long a slow answer takes in all."""
    oversized_bytes: int = 4 * 2**20
    """Body of the oversized answers: put the downloader's cap below it, and above 256 KiB."""
    retry_after_s: int = 1
    """Retry-After of a 429."""
    idle_timeout_s: float = 15.0
    """How long a connection may neither send a request nor read its answer."""
    tls: bool = True
    """Whether CONNECT is served, with certificates of an authority made for this run."""

    def __post_init__(self) -> None:
        for host in self.hosts:
            try:
                loopback = ip_address(host).is_loopback
            except ValueError:
                loopback = False
            if not loopback:
                raise UsageError(f"The simulated web serves loopback addresses only, not {host!r}.")

    @property
    def hosts(self) -> tuple[str, ...]:
        """All addresses it listens on."""
        return (self.host, *self.more_hosts)

    def to_json(self) -> str:
        """One line, for the child's standard input."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> WebConfig:
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(line)
        values |= {key: tuple(values[key]) for key in ("more_hosts", "slow_s") if key in values}
        return cls(**{**values, "shares": Shares(**values.get("shares", {}))})


class SimulatedWeb:
    """The web in a child process, from `with` to its end. Leaves no process and no file behind."""

    def __init__(self, config: WebConfig | None = None) -> None:
        self.config = config or WebConfig()
        self.address = ""
        """`HOST:PORT` once it runs; the URL base and the proxy are `http://` + this."""
        self.ca_path: Path | None = None
        """PEM file of the authority that clients must trust for https through the proxy."""
        self.complaints = ""
        """What the child wrote to its standard error, known after it has ended: empty if all was well."""
        self._child: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    @property
    def origins(self) -> tuple[str, ...]:
        """The URL base of each of its hosts, once it runs."""
        port = self.address.rpartition(":")[2]
        return tuple(f"http://[{h}]:{port}" if ":" in h else f"http://{h}:{port}" for h in self.config.hosts)

    def __enter__(self) -> Self:
        """Start it and wait until it listens. Raises DlconsoleError if it cannot."""
        # The file has no name on disk; a pipe that nobody reads could block the child.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "dlconsole.demo.web"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            process_group=0,  # Ctrl-C is for the parent, which ends the child when it has drained
        )
        try:
            self._greet(self._child)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.close()

    def close(self) -> None:
        """Stop it and wait until it has ended; harmless when it has."""
        child, self._child = self._child, None
        if child is None or child.stdin is None or child.stdout is None or self._errors is None:
            return
        try:
            child.stdin.close()
        except BrokenPipeError:
            pass
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
        self._errors.seek(0)
        self.complaints = self._errors.read().strip()
        self._errors.close()
        if self.ca_path is not None:  # the child does this itself, unless it was killed
            shutil.rmtree(self.ca_path.parent, ignore_errors=True)

    def _greet(self, child: subprocess.Popen[str]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(self.config.to_json() + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # the missing greeting says the same, with the reason
        line = child.stdout.readline()
        greeting: dict[str, Any] = json.loads(line) if line else {}
        if "address" not in greeting:
            self.close()
            reason = greeting.get("error") or self.complaints.rpartition("\n")[2] or "no reason given"
            raise DlconsoleError(f"The simulated web could not start: {reason}")
        self.address = greeting["address"]
        self.ca_path = Path(greeting["ca"]) if greeting["ca"] else None


def build_server(config: WebConfig, authority: Authority | None = None) -> WebServer:
    """The server for a config, not listening yet; without an authority it refuses CONNECT."""
    from dlconsole.demo.pictures import make_pictures  # noqa: PLC0415  (numpy, which only the child needs)

    pace = Pace(config.latency_s, *config.slow_s, config.oversized_bytes, config.retry_after_s)
    return WebServer(
        partial(plan_of, shares=config.shares, seed=config.seed),
        Answers(make_pictures(config.seed, count=config.pictures), pace),
        idle_timeout_s=config.idle_timeout_s,
        context_for=authority.context_for if authority else None,
    )


async def _serve(config: WebConfig, authority: Authority | None) -> None:
    """Listen, say where, and serve until standard input ends."""
    server = build_server(config, authority)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, _read_to_end, gone)
    try:
        port = await server.start(config.hosts, config.port)
    except OSError as error:
        _say(error=f"{', '.join(config.hosts)} port {config.port}: {error.strerror or error}")
    else:
        host = f"[{config.host}]" if ":" in config.host else config.host
        _say(address=f"{host}:{port}", ca=str(authority.ca_path) if authority else None)
        await gone.wait()
    finally:
        await server.stop()


def _read_to_end(gone: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        gone.set()


def _say(**greeting: str | None) -> None:
    print(json.dumps(greeting), flush=True)


def main() -> None:
    """The child: one line of JSON in, one line out, then it serves until its standard input ends."""
    line = sys.stdin.readline()
    if not line:
        return
    # Each connection is a descriptor, and the soft limit is often 1,024.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _DESCRIPTORS:
        wanted = _DESCRIPTORS if hard < 0 else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    config = WebConfig.from_json(line)
    if not config.tls:
        asyncio.run(_serve(config, None))
        return
    with tempfile.TemporaryDirectory(prefix="dlconsole-demo-") as folder:  # mode 0700
        asyncio.run(_serve(config, Authority(Path(folder))))


if __name__ == "__main__":
    main()
