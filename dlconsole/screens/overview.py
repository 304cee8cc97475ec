"""The overview: where all tasks are, how fast they move, and on which hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual.app import ComposeResult

from dlconsole.actions import actions_of
from dlconsole.model import FleetSnapshot
from dlconsole.picture import LinkState, Picture
from dlconsole.screens.base import LiveScreen
from dlconsole.settings import Settings
from dlconsole.widgets.alarms import AlarmLine, alarms_of
from dlconsole.widgets.counters import Counters
from dlconsole.widgets.header import Header
from dlconsole.widgets.host_table import HostTable
from dlconsole.widgets.key_bar import KeyBar
from dlconsole.widgets.link_line import LinkLine
from dlconsole.widgets.notice import Notice, Paragraph
from dlconsole.widgets.rate_plot import RatePlot


class OverviewScreen(LiveScreen):
    """Draws the picture it is given; while there is none, says what is awaited or what to do next."""

    CSS_PATH = Path(__file__).with_name("overview.tcss")
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-narrow"), (70, "-usual")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-low"), (20, "-middle"), (32, "-tall")]  # noqa: RUF012

    actions_name = "overview"

    def __init__(self, settings: Settings, picture: Picture, now: Callable[[], float]) -> None:
        super().__init__()
        self._settings = settings
        self._picture = picture
        self._link_line = LinkLine(now)
        self._alarms = AlarmLine()
        self._counters = Counters()
        self._plot = RatePlot()
        self._hosts = HostTable()
        self._notice = Notice()
        self._shown: FleetSnapshot | None = None

    def compose(self) -> ComposeResult:
        """The parts, from top to bottom."""
        settings = self._settings
        yield Header(
            dataset=settings.dataset,
            colour=settings.colour,
            context=settings.context,
            read_only=settings.read_only,
            redis_name=self._picture.redis_name,
        )
        yield self._link_line
        yield self._alarms
        yield self._counters
        yield self._plot
        yield self._hosts
        yield self._notice
        yield KeyBar(actions_of(self.actions_name, read_only=settings.read_only))

    def on_mount(self) -> None:
        """Show what there is."""
        self.show_picture(self._picture)

    def show_picture(self, picture: Picture) -> None:
        """Draw what differs."""
        self._picture = picture
        snapshot = picture.snapshot
        self._link_line.show_picture(picture)
        state = {
            "-stale": picture.link.state is LinkState.LOST,
            "-waiting": snapshot is None,
            "-empty": snapshot is not None and _is_empty(snapshot),
        }
        self.update_classes(state, animate=False)
        if snapshot is None:
            self._notice.show_paragraphs(_waiting_words(picture))
        elif snapshot is not self._shown:
            self._show_snapshot(snapshot)
        if self.focused is None and self._hosts.display:
            self.set_focus(self._hosts)

    def _show_snapshot(self, snapshot: FleetSnapshot) -> None:
        self._shown = snapshot
        self._alarms.show_alarms(alarms_of(snapshot))
        self._counters.show_snapshot(snapshot)
        if _is_empty(snapshot):
            self._notice.show_paragraphs(_empty_words(snapshot.dataset))
            return
        self._plot.show_snapshot(snapshot)
        self._hosts.show_snapshot(snapshot)


def _is_empty(snapshot: FleetSnapshot) -> bool:
    """Nothing was ever fed, and no session waits for it. Hosts do not count: the legacy disk hash
    lists those of every dataset.
    """
    counts = snapshot.counts
    tasks = counts.outstanding or counts.done or counts.fed or counts.error_list
    return not tasks and not snapshot.sessions


def _waiting_words(picture: Picture) -> list[Paragraph]:
    if picture.link.state is LinkState.CONNECTING:
        return [(f"Connecting to {picture.redis_name} …", "dim")]
    return [
        ("No answer from Redis yet", "strong"),
        ("", "plain"),
        (picture.link.reason, "plain"),
        ("", "plain"),
        ("The picture appears by itself as soon as it answers.", "dim"),
    ]


def _empty_words(dataset: str) -> list[Paragraph]:
    return [
        (f"Nothing in the dataset '{dataset}' yet", "strong"),
        ("", "plain"),
        ("Put a URL list into its queue:", "plain"),
        (f"    dlconsole feed FILE --dataset {dataset}", "code"),
        ("", "plain"),
        ("Download what is queued, on this host or any other:", "plain"),
        (f"    dlconsole --worker --dataset {dataset}", "code"),
        ("", "plain"),
        ("Is it another dataset that you meant? Name it with --dataset.", "dim"),
    ]
