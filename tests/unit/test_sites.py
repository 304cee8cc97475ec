"""What a process remembers of the sites that it fetches from, and what it says of them."""

from __future__ import annotations

import gc
import itertools

import msgspec
import pytest

from dlconsole.histogram import Histogram
from dlconsole.model import Failure, FailureKind, LookupResult, SitesReport, Stored
from dlconsole.workers.fetch import sites as module
from dlconsole.workers.fetch.sites import MAX_KNOWN, MAX_REPORT_BYTES, MAX_REPORTED, Sites
from dlconsole.workers.fetch.timings import Timings

STORED = Stored("a", "JPEG", 1000)
LATE = Failure(FailureKind.TIMEOUT, "late")


def report_of(sites: Sites) -> SitesReport:
    return msgspec.json.decode(sites.report(), type=SitesReport)


def test_a_site_has_its_counts_kinds_and_times() -> None:
    timings = Timings()
    sites = timings.sites
    timings.add_lookup("a.example", 0.2, LookupResult.FOUND)
    timings.add_fetch("a.example", opened=True, connect_s=0.1, tls_s=0.3, first_byte_s=0.5, total_s=1)
    timings.add_fetch("a.example", opened=False, connect_s=0, tls_s=0, first_byte_s=0.5, total_s=1)
    for outcome in (STORED, STORED, LATE):
        sites.add("a.example", outcome)
    sites.add("b.example", STORED)
    report = report_of(sites)
    site = report.sites["a.example"]
    assert (site.fetches, site.bytes, site.kinds) == (3, 2000, {"timeout": 1})
    assert (site.reused, site.opened) == (1, 1)
    sampled = {part: Histogram(counts) for part, counts in site.timings.items()}
    assert {part: histogram.total for part, histogram in sampled.items()} == {
        "dns": 1,
        "connect": 1,
        "tls": 1,
        "first_byte": 2,
    }
    assert sampled["tls"].percentile_s(50) == pytest.approx(0.3, rel=0.11)
    assert list(report.sites) == ["a.example", "b.example"]
    assert report.others.fetches == 0


def test_rates_are_those_since_the_last_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sites = Sites()
    for _ in range(50):
        sites.add("a", STORED)
    now[0] += 10
    assert report_of(sites).sites["a"].per_s == 5
    sites.add("a", LATE)
    now[0] += 2
    report = report_of(sites)
    assert (report.sites["a"].per_s, report.sites["a"].fetches) == (0.5, 51)
    now[0] += 2
    assert report_of(sites).sites["a"].per_s == 0


def test_however_many_sites_there_are_all_fetches_are_told_and_the_busy_ones_by_name() -> None:
    sites = Sites()
    for i in range(5 * MAX_KNOWN):
        sites.add(f"busy{i % 20}", STORED)
        sites.add(f"rare{i}", LATE)
    assert len(sites._known) <= MAX_KNOWN
    report = report_of(sites)
    assert len(report.sites) == MAX_REPORTED
    assert {f"busy{i}" for i in range(20)} <= report.sites.keys()
    assert report.sites["busy0"].fetches == MAX_KNOWN // 4
    everything = [*report.sites.values(), report.others]
    assert sum(site.fetches for site in everything) == 10 * MAX_KNOWN
    assert sum(site.kinds.get("timeout", 0) for site in everything) == 5 * MAX_KNOWN
    rest = report_of(sites)
    assert sum(site.per_s for site in (*rest.sites.values(), rest.others)) == 0


def test_a_site_that_became_busy_late_is_named() -> None:
    sites = Sites()
    for i in range(2 * MAX_KNOWN):
        sites.add(f"early{i % 64}", STORED)
        sites.add(f"rare{i}", STORED)
    for _ in range(1000):
        sites.add("late", STORED)
    assert "late" in report_of(sites).sites


def test_a_redirector_at_which_no_fetch_ends_is_not_named() -> None:
    sites = Sites()
    sites.add_sample("short.example", opened=True, connect_s=0.1, tls_s=0, first_byte_s=0.1)
    sites.add("target.example", STORED)
    report = report_of(sites)
    assert list(report.sites) == ["target.example"]
    assert report.others.opened == 1


def test_what_is_no_name_takes_no_room() -> None:
    sites = Sites()
    for i in range(100):
        sites.add("x" * 60_000 + str(i), LATE)
    assert not sites._known
    assert report_of(sites).others.fetches == 100


def test_the_most_hostile_report_keeps_its_bound() -> None:
    """Names as long as can be, of which JSON doubles each character; every kind; every bucket full."""
    sites = Sites()
    full = Histogram({str(bucket): 10**15 for bucket in range(97)})
    for i in range(MAX_KNOWN):
        name = f"{i:05}" + '"' * 250
        sites.add(name, STORED)
        site = sites._known[name]
        site.fetches = site.bytes = site.reused = site.opened = 2**63
        site.kinds = dict.fromkeys(FailureKind, 2**60)
        site.timings = {part: full.merge([]) for part in ("dns", "connect", "tls", "first_byte")}
    for _ in range(3):
        assert len(sites.report()) <= MAX_REPORT_BYTES
    report = report_of(sites)
    assert report.others.fetches + sum(s.fetches for s in report.sites.values()) == MAX_KNOWN * 2**63


def test_names_alone_can_make_a_report_name_fewer() -> None:
    sites = Sites()
    for i in range(MAX_REPORTED):
        sites.add(f"{i:03}" + "\\" * 252, STORED)
        for bucket in range(60):
            sites.add_sample(
                f"{i:03}" + "\\" * 252, opened=False, connect_s=0, tls_s=0, first_byte_s=1e-4 * 1.19**bucket
            )
    blob = sites.report()
    named = len(msgspec.json.decode(blob, type=SitesReport).sites)
    assert len(blob) <= MAX_REPORT_BYTES
    assert 8 <= named < MAX_REPORTED


def test_a_report_is_made_while_the_other_thread_adds_sites() -> None:
    """Where a collection of garbage comes in the middle of the copy, the other thread's turn may, too."""
    sites = Sites()
    for i in range(500):
        sites.add(f"h{i}", STORED)
    names = (f"new{i}" for i in itertools.count())
    threshold = gc.get_threshold()

    def others_turn(_phase: str, _info: dict[str, int]) -> None:
        sites.add(next(names), STORED)

    gc.callbacks.append(others_turn)
    gc.set_threshold(10)
    try:
        for _ in range(20):
            sites.report()
    finally:
        gc.callbacks.remove(others_turn)
        gc.set_threshold(*threshold)
    assert next(names) != "new0"
