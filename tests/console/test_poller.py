"""The poller: one question at a time, for ever, whatever the answers are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fleets import FakeReader, empty_fleet

from dlconsole import poller as module
from dlconsole.errors import RedisUnavailable
from dlconsole.model import FleetSnapshot
from dlconsole.picture import LinkState
from dlconsole.poller import LAST_RETRY_S, Poll, Poller


class SlowReader(FakeReader):
    """Answers only when told to."""

    def __init__(self) -> None:
        super().__init__(empty_fleet())
        self.may_answer = asyncio.Event()

    async def read_snapshot(self) -> FleetSnapshot:
        answer = await super().read_snapshot()
        await self.may_answer.wait()
        return answer


class Published(list[Poll]):
    """What a poller has published, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def __call__(self, poll: Poll) -> None:
        self.append(poll)
        self._news.set()

    async def until(self, condition: Callable[[Poll], object]) -> Poll:
        while not (self and condition(self[-1])):
            self._news.clear()
            await self._news.wait()
        return self[-1]


@asynccontextmanager
async def running(reader: FakeReader, refresh_s: float = 0.001) -> AsyncIterator[tuple[Poller, Published]]:
    published = Published()
    poller = Poller(reader, published, refresh_s=refresh_s, now=lambda: 100.0, chance=lambda: 0.5)
    task = asyncio.create_task(poller.run())
    try:
        yield poller, published
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert reader.closed


async def test_it_asks_again_and_again() -> None:
    reader = FakeReader(empty_fleet())
    async with running(reader) as (_, published):
        await published.until(lambda _: len(published) >= 5)
    assert {poll.link.state for poll in published} == {LinkState.LIVE}
    assert {poll.snapshot for poll in published} == {empty_fleet()}


async def test_questions_never_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    reader = SlowReader()
    async with running(reader) as (_, published):
        late = await published.until(lambda poll: poll.link.state is LinkState.LOST)
        assert reader.asked == 1  # fifty intervals have passed
        assert late.link.next_try_s is None
        assert "not answered" in late.link.reason
        reader.may_answer.set()
        await published.until(lambda poll: poll.link.state is LinkState.LIVE)


async def test_a_failure_keeps_the_last_snapshot_and_says_why_and_when_next() -> None:
    reader = FakeReader(empty_fleet())
    async with running(reader) as (_, published):
        await published.until(lambda poll: poll.link.state is LinkState.LIVE)
        reader.answer = RedisUnavailable("Redis at redis://h:1/0: gone")
        lost = await published.until(lambda poll: poll.link.state is LinkState.LOST)
        assert lost.snapshot == empty_fleet()
        assert lost.link.reason == "Redis at redis://h:1/0: gone"
        assert lost.link.next_try_s == 100.5
        reader.answer = empty_fleet()
        await published.until(lambda poll: poll.link.state is LinkState.LIVE)


async def test_a_fault_of_ours_is_shown_and_survived() -> None:
    reader = FakeReader(ZeroDivisionError("division by zero"))
    async with running(reader) as (_, published):
        lost = await published.until(lambda poll: poll.link.state is LinkState.LOST)
        assert lost.link.reason == "a fault in dlconsole: ZeroDivisionError: division by zero"
        reader.answer = empty_fleet()
        await published.until(lambda poll: poll.link.state is LinkState.LIVE)


def test_the_next_try_waits_longer_each_time_up_to_a_limit_with_jitter() -> None:
    polls: list[Poll] = []
    chance = 0.5
    poller = Poller(
        FakeReader(empty_fleet()), polls.append, refresh_s=2, now=lambda: 0.0, chance=lambda: chance
    )
    assert [poller._fail("") for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    chance = 1.0
    assert poller._fail("") == pytest.approx(LAST_RETRY_S * 1.2)
    chance = 0.0
    assert poller._fail("") == pytest.approx(LAST_RETRY_S * 0.8)
    assert [poll.link.next_try_s for poll in polls[:3]] == [0.5, 1, 2]


async def test_a_shorter_interval_counts_at_once() -> None:
    reader = FakeReader(empty_fleet())
    async with running(reader, refresh_s=3600) as (poller, published):
        await published.until(lambda _: True)
        poller.refresh_s = 0.001
        await published.until(lambda _: len(published) > 2)
