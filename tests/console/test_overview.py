"""The overview in a terminal that stays in memory: every key, every state, and what is repainted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleets import (
    AT_MS,
    FakeReader,
    console,
    empty_fleet,
    history,
    host,
    legacy_fleet,
    legacy_host,
    lines_of,
    settled,
    sheets,
    shown,
    until,
    usual_fleet,
)
from rich.cells import cell_len
from textual.geometry import Region
from textual.widgets import Button

from dlconsole.actions import ACTIONS, Scope, allowed
from dlconsole.app import DlconsoleApp
from dlconsole.errors import RedisUnavailable, RedisUnusable
from dlconsole.model import FleetSnapshot, Pause, Rates, RedisInfo
from dlconsole.screens.confirm import ConfirmScreen
from dlconsole.screens.help import HelpScreen
from dlconsole.screens.overview import OverviewScreen
from dlconsole.widgets.host_table import HostTable

GONE = RedisUnavailable("Redis at redis://10.20.0.5:6379/0 cannot be reached: Connection refused")


def reader_of(app: DlconsoleApp) -> FakeReader:
    reader = app._poller._reader
    assert isinstance(reader, FakeReader)
    return reader


def table_of(app: DlconsoleApp) -> HostTable:
    return app.screen_stack[0].query_one(HostTable)


# -- what it shows ---------------------------------------------------------------------------------


async def test_it_shows_the_fleet_at_once() -> None:
    app = console(usual_fleet(), context="prod")
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
    for words in (
        "laion5b",
        "context prod",
        "redis://10.20.0.5:6379/0",
        "● live  10 hosts  31 sessions  Redis 7.2.4",
        "4,317,905",
        "2,048",
        "18,230",
        "21,480,316",
        "2,906,158",
        "88.0 %",
        "1,164",
        "101 MiB",
        "54 m 41 s",
        "84.9 %",
        "now 1.16k",
        "last 6 h",
        "dl-01.eu-west",
        "10.9.0.7",
        "97 %",
        "legacy",
        "1 m ago",
    ):
        assert words in text, words


async def test_a_legacy_fleet_is_shown_with_what_it_tells() -> None:
    app = console(legacy_fleet())
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
        rows = lines_of(table_of(app))
    assert "412" in text and "188,020" in text
    assert "AOF off" in text and "allkeys-lru can evict tasks" in text
    assert [row.split()[0] for row in rows[1:4]] == ["10.9.0.3", "10.9.0.21", "10.9.0.100"]
    assert "423 GiB" in rows[1] and "legacy" in rows[1] and "━" not in rows[1]


async def test_an_unused_redis_says_what_to_do_next() -> None:
    app = console(empty_fleet())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = shown(app)
        assert "dlconsole feed FILE --dataset laion5b" in text
        assert "dlconsole --worker --dataset laion5b" in text
        assert not table_of(app).display
        reader_of(app).answer = usual_fleet()
        await until(pilot, lambda: table_of(app).display and "dl-01" in shown(app))
        assert app.focused is table_of(app)
        assert "dlconsole feed" not in shown(app)


async def test_tasks_without_hosts_say_how_to_start_one() -> None:
    app = console(replace(legacy_fleet(), hosts=()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "No hosts yet. Start downloading on one: dlconsole --worker" in shown(app)
        await pilot.press("j", "G", "g", "k", "pagedown", "l", "h")
        assert table_of(app).cursor == 0


async def test_while_nothing_is_known_nothing_is_claimed() -> None:
    app = console(replace(usual_fleet(), rates=Rates(), history=()))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
    assert "no history yet" in text
    assert "88.1 %" in text  # of everything, since nothing is being done now


async def test_a_pause_is_seen() -> None:
    app = console(replace(usual_fleet(), pause=Pause("alice@dl-01", "swapping a disk", AT_MS)))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        assert "fleet PAUSED by alice@dl-01: swapping a disk" in shown(app)


@pytest.mark.parametrize(
    ("redis", "words"),
    [
        (RedisInfo("7.2", 95, 100, "noeviction", aof=True), "95% of maxmemory"),
        (RedisInfo("7.2", 1, 0, "volatile-ttl", aof=True), "volatile-ttl can evict tasks"),
        (RedisInfo("7.2", 1, 0, "noeviction", aof=False), "AOF off"),
        (RedisInfo("7.2", 1, 0, "noeviction", aof=True, role="slave"), "takes no writes"),
    ],
)
async def test_what_is_unsafe_about_redis_is_said(redis: RedisInfo, words: str) -> None:
    app = console(replace(usual_fleet(hosts=2), redis=redis))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        assert words in shown(app)


async def test_hosts_whose_store_fails_are_marked_and_the_alarm_says_why() -> None:
    why = "store /srv/images: No space left on device"
    hosts = (host(1, waits=why), host(2), host(4, waits=why))
    app = console(replace(usual_fleet(), hosts=hosts))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
        assert f"dl-01.eu-west and 1 more wait for their store: {why}" in text
        rows = {
            name: line for line in text.splitlines() for name in ("dl-01", "dl-02", "dl-04") if name in line
        }
        assert [name for name, line in rows.items() if "waits" in line] == ["dl-01", "dl-04"]


async def test_a_safe_fleet_raises_no_alarm() -> None:
    app = console(replace(usual_fleet(), hosts=(host(2, seen_ms=AT_MS),)))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        assert "▲" not in shown(app)


async def test_a_read_only_context_wears_its_badge_and_its_colour() -> None:
    app = console(usual_fleet(), read_only=True, colour="red", context="prod")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "READ-ONLY" in shown(app)
        red, _, blue = sheets(app)[0].styles.background.rgb
        assert red > blue


# -- the connection --------------------------------------------------------------------------------


async def test_a_lost_redis_leaves_the_last_picture_greyed_and_comes_back() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        reader_of(app).answer = GONE
        await until(pilot, lambda: "stale" in shown(app))
        text = shown(app)
        assert "✕ stale 0 s, next try in 1 s" in text
        assert "Connection refused" in text
        assert "21,480,316" in text
        assert table_of(app).opacity < 0.6
        await pilot.press("j")
        assert table_of(app).cursor == 1  # no key is blocked
        reader_of(app).answer = usual_fleet()
        await until(pilot, lambda: "● live" in shown(app))
        assert table_of(app).opacity == 1


async def test_the_age_of_a_stale_picture_is_told() -> None:
    app = console(usual_fleet())
    now = 5_000.0
    app._poller._now = lambda: now
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        line = sheets(app)[1]
        line._now = lambda: now  # type: ignore[attr-defined]
        now = 5_012.0
        reader_of(app).answer = GONE
        await until(pilot, lambda: "stale 12 s, next try in" in shown(app))
        now = 5_075.0
        line.redraw()
        assert "stale 1 m 15 s, next try in 0 s" in shown(app)


async def test_a_redis_that_never_answered_is_awaited_in_words() -> None:
    app = console(GONE)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "No answer from Redis yet" in shown(app))
        assert "no connection for 0 s" in shown(app)
        assert "QUEUED" not in shown(app)
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        reader_of(app).answer = usual_fleet()
        await until(pilot, lambda: "dl-01" in shown(app))
        await pilot.press("j")
        assert table_of(app).cursor == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RedisUnusable("Redis at redis://h:1/0 refuses the user or password"),
            "refuses the user or password",
        ),
        (KeyError("x"), "a fault in dlconsole: KeyError: 'x'"),
    ],
)
async def test_every_failure_is_shown_and_none_ends_the_console(error: Exception, words: str) -> None:
    app = console(error)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: words in shown(app))
        reader_of(app).answer = usual_fleet()
        await until(pilot, lambda: "● live" in shown(app))


# -- keys ------------------------------------------------------------------------------------------


async def test_the_cursor_moves_by_every_key_of_the_table() -> None:
    app = console(usual_fleet(hosts=98))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        table = table_of(app)
        for key, row in (
            ("down", 1),
            ("j", 2),
            ("up", 1),
            ("k", 0),
            ("k", 0),
            ("G", 99),
            ("j", 99),
            ("g", 0),
            ("end", 99),
            ("home", 0),
        ):
            await pilot.press(key)
            assert table.cursor == row, key
        await pilot.press("pagedown")
        page = table.cursor
        assert 3 < page < 12
        await pilot.press("pagedown", "pageup")
        assert table.cursor == page
        await pilot.press("G")
        assert "10.9.0.12" in lines_of(table)[-1]


async def test_hidden_columns_come_into_view() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(60, 24)) as pilot:
        await settled(pilot)
        table = table_of(app)
        assert "DATA/S" not in lines_of(table)[0] and "▸" in lines_of(table)[0]
        for key in ("l", "right", "l", "l", "l", "l", "l", "l"):
            await pilot.press(key)
        heading = lines_of(table)[0]
        assert heading.startswith("◂HOST") and "DATA/S" in heading and "▸" not in heading
        assert "dl-01" in lines_of(table)[1]
        await pilot.press("h", "left", *"hhhhhhh")
        assert "DISK" in lines_of(table)[0] and "◂" not in lines_of(table)[0]


async def test_space_freezes_the_picture_and_lets_it_go_on() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("space")
        assert "FROZEN" in shown(app)
        newer = usual_fleet()
        reader = reader_of(app)
        reader.answer = replace(newer, counts=replace(newer.counts, stored=30_000_000))
        asked = reader.asked
        await until(pilot, lambda: reader.asked > asked + 1)
        await pilot.pause()
        assert "21,480,316" in shown(app)
        await pilot.press("space")
        assert "FROZEN" not in shown(app) and "30,000,000" in shown(app)


async def test_a_frozen_picture_still_tells_when_redis_goes() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("space")
        reader_of(app).answer = GONE
        await until(pilot, lambda: "stale" in shown(app))
        assert "FROZEN" in shown(app)


async def test_the_refresh_interval_steps_and_stops_at_its_ends() -> None:
    app = console(usual_fleet(), console={"refresh_s": 2})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "refresh 2 s" in shown(app)
        for key, words in (
            ("plus", "refresh 5 s"),
            ("equals_sign", "refresh 10 s"),
            ("minus", "refresh 5 s"),
            ("minus", "refresh 2 s"),
            ("minus", "refresh 1 s"),
            ("minus", "refresh 0.5 s"),
            ("minus", "refresh 0.5 s"),
        ):
            await pilot.press(key)
            assert words in shown(app), key
        for _ in range(9):
            await pilot.press("plus")
        assert "refresh 1 m" in shown(app)


@pytest.mark.parametrize("key", ["escape", "q", "question_mark"])
async def test_help_lists_every_key_and_closes(key: str) -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(100, 40)) as pilot:
        await settled(pilot)
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        (table,) = app.screen.query("KeyTable")
        text = "\n".join(lines_of(table))  # type: ignore[arg-type]
        for action in ACTIONS:
            assert action.words in text
        await pilot.press(key)
        assert isinstance(app.screen, OverviewScreen)
        assert app.is_running


async def test_the_help_of_a_small_terminal_scrolls() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(40, 15)) as pilot:
        await settled(pilot)
        await pilot.press("question_mark")
        box = app.screen.query_one("#help")
        await pilot.press("j", "j", "down")
        await until(pilot, lambda: box.scroll_y == 3)
        await pilot.press("k")
        await until(pilot, lambda: box.scroll_y == 2)


async def test_the_picture_goes_on_under_the_help() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("question_mark")
        newer = usual_fleet()
        reader_of(app).answer = replace(newer, counts=replace(newer.counts, stored=30_000_000))
        await until(pilot, lambda: "30,000,000" in shown(app))


async def test_the_palette_runs_an_action_and_shows_its_key() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p")
        entries = app.screen.query_one("CommandList")
        await until(pilot, lambda: entries.option_count)  # type: ignore[attr-defined]
        prompts = [str(option.prompt) for option in entries.options]  # type: ignore[attr-defined]
        listed = [action for action in ACTIONS if action.in_palette]
        assert len(prompts) == len(listed)
        assert any("Space" in prompt and "Freeze the picture" in prompt for prompt in prompts)
        await pilot.press(*"freeze")
        await until(pilot, lambda: entries.option_count == 1)  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: "FROZEN" in shown(app))
        assert isinstance(app.screen, OverviewScreen)


async def test_escape_closes_the_palette() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, OverviewScreen))
        await pilot.press("escape")
        assert app.is_running


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_quitting_ends_the_console_and_gives_the_connection_back(key: str) -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press(key)
        await until(pilot, lambda: not app.is_running)
    assert app.return_code == 0
    assert reader_of(app).closed


async def test_quitting_asks_where_something_would_end_and_enter_changes_nothing() -> None:
    app = console(usual_fleet(), on_quit_note=lambda: "Two [b]workers[/b] stop.")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for keys in (["enter"], ["escape"], ["n"], ["right", "left", "enter"]):
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
            assert isinstance(app.focused, Button) and app.focused.id == "no"
            assert "Two [b]workers[/b] stop." in str(app.screen.query_one("#confirm-words").visual)
            await pilot.press(*keys)
            await until(pilot, lambda: isinstance(app.screen, OverviewScreen))
            assert app.is_running


@pytest.mark.parametrize("keys", [["y"], ["right", "enter"], ["l", "enter"], ["ctrl+c"]])
async def test_the_question_can_be_answered_with_yes(keys: list[str]) -> None:
    app = console(usual_fleet(), on_quit_note=lambda: "Two workers stop.")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("q")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press(*keys)
        await until(pilot, lambda: not app.is_running)


async def test_ctrl_c_quits_from_the_help_too() -> None:
    app = console(usual_fleet())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("question_mark")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not app.is_running)


async def test_the_mouse_moves_the_cursor_and_runs_the_key_bar() -> None:
    app = console(usual_fleet(hosts=50))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        table = table_of(app)
        await pilot.click(HostTable, offset=(5, 3))
        assert table.cursor == 2
        bar = sheets(app)[-1]
        await pilot.click(bar, offset=(lines_of(bar)[0].index("freeze"), 0))
        await until(pilot, lambda: "FROZEN" in shown(app))


def test_every_action_of_the_table_is_carried_out_by_someone() -> None:
    owners: dict[Scope, Any] = {Scope.APP: DlconsoleApp, Scope.TABLE: HostTable}
    for action in ACTIONS:
        if action.scope in owners:
            assert hasattr(owners[action.scope], f"action_{action.id}"), action.id


def test_nothing_in_a_read_only_context_may_change_something(monkeypatch: pytest.MonkeyPatch) -> None:
    changing = replace(ACTIONS[0], id="wipe", read_only=False)
    monkeypatch.setattr("dlconsole.actions.ACTIONS", (*ACTIONS, changing))
    assert not allowed("wipe", read_only=True)
    assert allowed("wipe", read_only=False)
    assert allowed("help", read_only=True)
    assert console(empty_fleet(), read_only=True).check_action("wipe", ()) is False


# -- what is repainted -----------------------------------------------------------------------------


class Repaints:
    """The regions of the host table that were marked for repainting, and how often anything was painted."""

    def __init__(self, app: DlconsoleApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.regions: list[Region] = []
        self.paints = 0
        table, display = table_of(app), app._display
        refresh = table.refresh

        def spy_refresh(*regions: Region, **kwargs: bool) -> HostTable:
            self.regions.extend(regions or [table.content_size.region])
            return refresh(*regions, **kwargs)

        def spy_display(screen: Any, renderable: Any) -> None:
            self.paints += renderable is not None
            display(screen, renderable)

        monkeypatch.setattr(table, "refresh", spy_refresh)
        monkeypatch.setattr(app, "_display", spy_display)


def thousand(**first: object) -> FleetSnapshot:
    return replace(
        usual_fleet(), hosts=(host(0, **first), *(host(i, seen_ms=AT_MS - 900) for i in range(1, 1000)))
    )


async def polls(pilot: Any, app: DlconsoleApp, count: int) -> None:
    reader = reader_of(app)
    asked = reader.asked
    await until(pilot, lambda: reader.asked >= asked + count)
    await pilot.pause()


async def test_an_unchanged_picture_of_a_thousand_hosts_paints_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = console(thousand())
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await polls(pilot, app, 1)
        repaints = Repaints(app, monkeypatch)
        for _ in range(3):  # equal, and never the same object
            reader_of(app).answer = thousand()
            await polls(pilot, app, 1)
        assert repaints.regions == []
        assert repaints.paints == 0


async def test_a_later_moment_without_news_paints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = replace(usual_fleet(), hosts=(legacy_host(1),), rates=Rates(0.0, 0.0, 0.0), history=())
    app = console(idle)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await polls(pilot, app, 1)
        repaints = Repaints(app, monkeypatch)
        for seconds in (2, 4, 600):
            reader_of(app).answer = replace(idle, at_ms=AT_MS + seconds * 1000)
            await polls(pilot, app, 1)
        assert repaints.paints == 0


async def test_of_a_thousand_hosts_only_the_changed_cell_is_repainted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = console(thousand(stored_per_s=100.0))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        repaints = Repaints(app, monkeypatch)
        reader_of(app).answer = thousand(stored_per_s=135.0)
        await until(pilot, lambda: repaints.regions)
        await polls(pilot, app, 2)
        assert len(repaints.regions) == 1
        region = repaints.regions[0]
        assert region.y == 1 and region.height == 1 and region.width <= 8
        assert "135" in lines_of(table_of(app))[1][region.x : region.right]


async def test_a_change_out_of_sight_repaints_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    app = console(thousand())
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        repaints = Repaints(app, monkeypatch)
        before = thousand()
        reader_of(app).answer = replace(before, hosts=(*before.hosts[:-1], host(999, stored_per_s=1.0)))
        await polls(pilot, app, 2)
        assert repaints.regions == []


async def test_the_cursor_stays_on_its_host_when_others_come_and_go() -> None:
    app = console(replace(usual_fleet(), hosts=tuple(host(i) for i in (3, 5, 7))))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("j")
        table = table_of(app)
        reader_of(app).answer = replace(usual_fleet(), hosts=tuple(host(i) for i in (1, 2, 3, 4, 5, 6)))
        await until(pilot, lambda: "6 hosts" in shown(app))
        assert table.cursor_key() == (host(5).name, host(5).ip)
        reader_of(app).answer = replace(usual_fleet(), hosts=(host(1),))
        await until(pilot, lambda: "1 host " in shown(app))
        assert table.cursor == 0
        reader_of(app).answer = replace(usual_fleet(), hosts=())
        await until(pilot, lambda: "No hosts yet" in shown(app))


async def test_hosts_stand_in_the_order_of_their_numbers() -> None:
    names = ["node-10", "node-2", "node-1", "alpha", "node-2b", "١٢"]
    app = console(replace(usual_fleet(), hosts=tuple(host(i, name=name) for i, name in enumerate(names))))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        rows = [line.split()[0] for line in lines_of(table_of(app))[1:7]]
    assert [row for row in rows if row.startswith("node")] == ["node-1", "node-2", "node-2b", "node-10"]


# -- odd terminals, odd data -----------------------------------------------------------------------


async def test_any_size_at_any_time() -> None:
    app = console(replace(usual_fleet(), pause=Pause("a", "b", 0)))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        for width, height in ((40, 15), (1, 1), (20, 5), (300, 100), (79, 19), (12, 40), (80, 24)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            await pilot.press("j", "G", "l", "question_mark", "escape")
            for sheet in sheets(app):
                for line in lines_of(sheet):
                    assert cell_len(line) == sheet.content_size.width
        assert "4,317,905" in shown(app)


HOSTILE = (
    "[red]not markup[/red] [@click=app.quit]x[/]",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines\r\t\x00",
    "\u202ereversed",
    "long" * 5_000,
    "図書館" * 30,
    "",
)


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_text_is_drawn_and_does_nothing(name: str) -> None:
    snapshot = replace(
        usual_fleet(),
        hosts=tuple(host(i, name=text) for i, text in enumerate(HOSTILE)),
        pause=Pause(name, name, AT_MS),
        redis=RedisInfo(name, 1, 1, name, aof=False, role=name),
    )
    app = console(snapshot, context=name)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        assert "[red]not mark" in shown(app)
        assert_harmless(app)
        reader_of(app).answer = RedisUnavailable(name)
        await until(pilot, lambda: "stale" in shown(app))
        assert_harmless(app)


def assert_harmless(app: DlconsoleApp) -> None:
    for sheet in sheets(app):
        for line in lines_of(sheet):
            assert cell_len(line) == sheet.content_size.width
            assert line.isprintable()


async def test_numbers_that_cannot_be_are_drawn_all_the_same() -> None:
    strange = replace(
        usual_fleet(),
        counts=replace(usual_fleet().counts, queued=10**19, stored=-5, failed=0),
        rates=Rates(1e300, 0.0, float("inf"), 7.0, 1e30),
        hosts=(
            host(1, disk_used_bytes=-1, stored_per_s=1e308, bytes_per_s=float("inf")),
            host(2, disk_used_bytes=2**63, disk_total_bytes=1, seen_ms=AT_MS + 10**12),
            host(3, disk_used_bytes=None, disk_total_bytes=None, seen_ms=0),
        ),
        history=(*history(0.1, 1_000), *history(0.1, 10)),
    )
    app = console(strange)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "● live" in shown(app)
        for sheet in sheets(app):
            assert all(cell_len(line) == sheet.content_size.width for line in lines_of(sheet))
