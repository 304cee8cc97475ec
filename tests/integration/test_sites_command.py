"""`dlconsole sites`: from what workers fetch to what a person reads."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from host_web import Host, HostWeb, Reply
from integration_support import KEYS, Running, changed, task, until

from dlconsole.cli import main
from dlconsole.histogram import Histogram
from dlconsole.model import SessionStats, SitesReport, SiteStats
from dlconsole.services import parked
from dlconsole.services.queue import Session, new_session_id
from dlconsole.settings import Settings
from dlconsole.workers.fetch.sites import MAX_REPORT_BYTES

Said = pytest.CaptureFixture[str]


@pytest.fixture
def words(redis_url: str) -> list[str]:
    return ["--redis", redis_url, "--dataset", "ds"]


@pytest.fixture
def said(words: list[str], capsys: Said) -> Any:
    """Runs the command: what it printed, as JSON or as lines."""

    def say(*more: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main(["sites", *words, *more]) == status
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in more else out.splitlines()

    return say


def a_session(client: redis.Redis, url: str, report: SitesReport | bytes | None) -> Session:
    session = Session(client, KEYS, new_session_id("web-1"), lease_s=30, url=url)
    session.open()
    sites = report if isinstance(report, bytes) else msgspec.json.encode(report) if report else b""
    session.renew(SessionStats(host="web-1", pid=1, started_ms=0), sites)
    return session


def times(*durations_s: float) -> dict[str, int]:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    return histogram.counts


# -- from workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["curl", "requests"])
def test_what_two_workers_fetched_is_told_by_site(
    engine: str, settings: Settings, redis_client: redis.Redis, said: Any
) -> None:
    settings = changed(settings, "worker", engine=engine, batch=10)
    settings = changed(settings, "fetch", deadline_s=30)
    with HostWeb(Host(), Host(lambda path: Reply(404 if int(path[-1]) % 2 else 200)), Host()) as web:
        lead = web.hosts[0].origin
        web.hosts[2].answer = lambda path: Reply(302, (("Location", lead + path),))
        workers = [Running(settings), Running(settings)]
        tasks = [
            task(f"{host.origin}/{i}", f"/ds/{n}/{i}") for n, host in enumerate(web.hosts) for i in range(40)
        ]
        redis_client.lpush(KEYS.task, *tasks)

        def all_told() -> Any:
            found = said("--json")
            return found if sum(site["fetches"] for site in found["sites"]) == 120 else None

        found = until(all_told, within_s=60)
        assert (found["sessions"], found["reporting"], found["unreadable"]) == (2, 2, 0)
        sites = {site["site"]: site for site in found["sites"]}
        assert sites.keys() == {"127.0.1.1", "127.0.1.2"}  # where the fetches ended
        good, half = sites["127.0.1.1"], sites["127.0.1.2"]
        assert (good["fetches"], good["failed"]) == (80, 0)
        assert (half["fetches"], half["failed"], half["kinds"]) == (40, 20, {"http_status": 20})
        assert good["bytes"] == 4 * half["bytes"] > 0
        assert good["times"]["first_byte"]["p50_s"] > 0
        assert good["times"]["tls"]["p50_s"] is None
        assert good["opened"] >= 1
        assert said("--sort", "failures")[3].split()[0] == "127.0.1.2"
        for worker in workers:
            assert worker.stop() is True
    assert said() == ["no session of 'ds' is alive (legacy workers report no sites)"]


def test_an_image_that_only_decoding_refuses_counts_for_its_site(
    settings: Settings, redis_client: redis.Redis, said: Any
) -> None:
    settings = changed(settings, "worker", verify="decode", verify_processes=1, max_pixels=16)
    with HostWeb(Host()) as web:
        redis_client.lpush(KEYS.task, task(f"{web.hosts[0].origin}/a"))
        worker = Running(settings)
        (site,) = until(lambda: said("--json")["sites"], within_s=60)
        assert site["kinds"] == {"not_image": 1}
        worker.stop()


def test_the_report_goes_with_its_session(redis_client: redis.Redis, redis_url: str, said: Any) -> None:
    session = a_session(redis_client, redis_url, SitesReport({"a": SiteStats(fetches=1)}))
    assert 30_000 < redis_client.pttl(KEYS.sites(session.id)) <= 60_000
    session.renew(SessionStats(host="web-1", pid=1, started_ms=0))
    assert [site["site"] for site in said("--json")["sites"]] == ["a"]
    redis_client.zadd(KEYS.lease, {session.id: 1})
    assert said("--json")["sites"] == []


# -- what is printed ---------------------------------------------------------------------------------


@pytest.fixture
def fleet(redis_client: redis.Redis, redis_url: str) -> None:
    """Two sessions that know some of the same sites, one of an older version, a parked site or two."""
    first = SitesReport(
        {
            "quick.example": SiteStats(
                900, 9_000_000, 90.0, {"timeout": 1}, 9, 1, {"first_byte": times(0.01)}
            ),
            "images.of.a.site.with.a.long.name.example": SiteStats(50, 200, 0.4, {"dns": 30, "tls": 10}),
        },
        SiteStats(70, 700, 7.0, {"dns": 7}),
    )
    second = SitesReport(
        {
            "quick.example": SiteStats(100, 1_000_000, 10.0, {"timeout": 2, "tls": 5}, 0, 10),
            "slow.example": SiteStats(20, 2**40, 1.0, {}, 1, 1, {"first_byte": times(1.0, 1.0, 5.0)}),
        },
        SiteStats(30, 300, 3.0),
    )
    for report in (first, second, None):
        a_session(redis_client, redis_url, report)
    told = {"slow.example": 200.4, "never.fetched.example": 86_000.0}
    parked.exchange(redis_client, KEYS, redis_url, told.items())


@pytest.mark.usefixtures("fleet")
def test_sessions_add_up(said: Any) -> None:
    found = said("--json")
    assert (found["sessions"], found["reporting"], found["known"]) == (3, 2, 4)
    sites = {site["site"]: site for site in found["sites"]}
    quick, slow = sites["quick.example"], sites["slow.example"]
    assert (quick["fetches"], quick["bytes"], quick["per_s"]) == (1000, 10_000_000, 100)
    assert (quick["failed"], quick["kinds"]) == (8, {"tls": 5, "timeout": 3})
    assert quick["reuse"] == 0.45
    assert slow["times"]["first_byte"]["p50_s"] == pytest.approx(1, rel=0.11)
    assert slow["times"]["first_byte"]["p99_s"] == pytest.approx(5, rel=0.11)
    assert slow["times"]["dns"] == {"p50_s": None, "p95_s": None, "p99_s": None}
    assert slow["parked_s"] == pytest.approx(200, abs=30)
    assert quick["parked_s"] == 0
    others = found["others"]
    assert (others["fetches"], others["failed"], others["per_s"]) == (100, 7, 10)


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("rate", ["quick.example", "slow.example"]),
        ("failures", ["images.of.a.site.with.a.long.name.example", "quick.example"]),
        ("bytes", ["slow.example", "quick.example"]),
        ("slow", ["slow.example", "quick.example"]),
    ],
)
def test_sorted_and_cut(order: str, first: list[str], said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert [site["site"] for site in said("--json", "--sort", order)["sites"]][:2] == first
    assert [site["site"] for site in said("--json", "--sort", order, "--limit", "1")["sites"]] == first[:1]
    lines = said("--sort", order, "--limit", "1")
    assert lines[3].split()[0] == first[0]
    assert lines[-1] == "and 3 more sites: see --limit"


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("columns", ["80", "100", "200"])
def test_the_table_is_aligned(columns: str, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = said()
    assert lines[0] == "4 sites of 3 sessions, by rate; 1 not reporting yet"
    head, quick, slow, long, never, others = lines[2:]
    assert max(map(len, lines)) <= int(columns)
    ends = [head.index(name) + len(name) for name in ("fetches", "/s", "failed", "bytes", "p50", "reuse")]
    shown = ["quick.example", "1.00k", "100", "8", "9.54", "MiB", "9.9", "9.9", "9.9", "45%"]
    assert quick.split()[: len(shown)] == shown
    for line in (quick, slow, long, never, others):
        assert all(line[end - 1] != " " for end in ends)
        assert all(line[end : end + 1] in {"", " "} for end in ends)
    assert slow[: head.index("parked") + 6].endswith(("3 m 20 s", "m", "s"))
    assert "23 h" in never
    assert others.startswith("(others)")
    if columns == "80":
        assert long.startswith("…")
        assert long.split()[0].endswith("name.example")
        assert "mostly" not in head
    if columns == "200":
        assert head.endswith("mostly")
        assert long.startswith("images.of.a.site.with.a.long.name.example ")
        assert long.endswith(" dns")


def test_no_worker_and_legacy_workers_only(redis_client: redis.Redis, said: Any) -> None:
    nobody = ["no session of 'ds' is alive (legacy workers report no sites)"]
    assert said() == nobody
    redis_client.lpush(KEYS.task, b'{"img_path": "/a", "img_url": "http://a/"}')
    redis_client.incr(KEYS.stored)
    redis_client.hset("tongji_worker_disk", "10_0_0_7", 12)
    assert said() == nobody
    assert said("--json")["sites"] == []


def test_sessions_that_report_nothing_are_counted(
    redis_client: redis.Redis, redis_url: str, said: Any
) -> None:
    a_session(redis_client, redis_url, None)
    assert said() == ["no site reported yet by 1 session: it comes with the second heartbeat"]


def test_what_is_no_report_is_left_out_and_counted(
    redis_client: redis.Redis, redis_url: str, said: Any
) -> None:
    hostile = (
        b"no JSON",
        b'{"sites": {"a": {"fetches": -1}}}',
        b'{"sites": {"a": {"kinds": {"dns": "1"}}}}',
        b'{"sites": {"' + b"x" * 70_000 + b'": {}}}',
        b"\xff" * MAX_REPORT_BYTES,
    )
    for report in hostile:
        a_session(redis_client, redis_url, report)
    other_type = a_session(redis_client, redis_url, None)
    redis_client.lpush(KEYS.sites(other_type.id), "x")
    redis_client.zadd(KEYS.parked, {b"x" * 1000: 2**60, b"\xff": 2**60, "far": float("inf"), "gone": 1})
    name = "\x1b[31m\u202e" + "w\uff37" * 100
    odd = SitesReport(
        {name: SiteStats(3, 2**62, 1e300, {"\x1b[0m": 1}, timings={"first_byte": {"9" * 9: 1}})}
    )
    a_session(redis_client, redis_url, odd)
    found = said("--json")
    assert (found["sessions"], found["reporting"], found["unreadable"]) == (7, 1, 6)
    assert {site["site"] for site in found["sites"]} == {name, "far"}
    lines = said()
    assert "6 unreadable reports" in lines[0]
    assert not any("\x1b" in line or "\u202e" in line for line in lines)


def test_a_redis_that_is_away_or_has_another_key(
    redis_client: redis.Redis, said: Any, capsys: Said, tmp_path: Path
) -> None:
    redis_client.set(KEYS.lease, "x")
    said(status=3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert main(["sites", "--redis", f"redis://127.0.0.1:{port}/0", "--dataset", "ds"]) == 3
    error = capsys.readouterr().err
    assert "cannot be reached" in error
    assert len(error.splitlines()) == 1


def test_a_wrong_type_is_said_without_the_script(
    redis_client: redis.Redis, words: list[str], capsys: Said
) -> None:
    redis_client.set(KEYS.parked, "x")
    assert main(["sites", *words]) == 3
    error = capsys.readouterr().err
    assert "another type" in error
    assert len(error) < 400


@pytest.mark.parametrize("limit", ["-1", "x", "²"])
def test_a_limit_is_a_number(limit: str, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sites", *words, f"--limit={limit}"])
