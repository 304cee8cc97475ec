"""The console: its screens, the poller that feeds them, and what the keys of every screen do."""

from __future__ import annotations

import asyncio
import importlib
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

from textual.app import App
from textual.binding import BindingType
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.message import Message

from dlconsole.actions import ACTIONS, Action, Scope, actions_of, allowed, key_words
from dlconsole.model import FleetSnapshot
from dlconsole.picture import Link, LinkState, Picture
from dlconsole.poller import Poll, Poller, SnapshotReader
from dlconsole.screens.base import LiveScreen
from dlconsole.screens.confirm import ConfirmScreen
from dlconsole.screens.help import HelpScreen
from dlconsole.screens.overview import OverviewScreen
from dlconsole.settings import Settings
from dlconsole.widgets.tones import BLUE, THEME
from dlconsole.widgets.wiring import bindings_of

REFRESH_STEPS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""What `+` and `-` step through."""
_END_S: Final = 1.0
"""How long quitting waits for the upkeep to end; where Redis hangs, it ends with the process."""


class Polled(Message):
    """A poll has ended. One that still waits in the queue is replaced by a newer one."""

    def __init__(self, poll: Poll) -> None:
        super().__init__()
        self.poll = poll

    def can_replace(self, message: Message) -> bool:
        """Only the newest counts."""
        return isinstance(message, Polled)


class ActionProvider(Provider):
    """The palette's entries: the action table, each with its keys."""

    def _entries(self) -> list[Action]:
        app = self.app
        return [a for a in ACTIONS if a.in_palette and app.check_action(a.id, ()) is not False]

    async def discover(self) -> Hits:
        """All of them, before anything is typed."""
        for action in self._entries():
            yield DiscoveryHit(_entry(Content(action.words), action), self._runner(action), text=action.words)

    async def search(self, query: str) -> Hits:
        """Those whose words are like `query`."""
        matcher = self.matcher(query)
        for action in self._entries():
            score = matcher.match(action.words)
            if score > 0:
                display = _entry(matcher.highlight(action.words), action)
                yield Hit(score, display, self._runner(action), text=action.words)

    def _runner(self, action: Action) -> Callable[[], object]:
        return lambda: self.app.run_action(action.id)


def _entry(words: Content, action: Action) -> Content:
    """The keys stand in front, in one column, as on the help screen."""
    return Content.assemble((f"{key_words(action):<8}", BLUE), words)


class LateUpkeep:
    """`services.keeper` in a thread of its own, where it is also imported: it never holds up a picture."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def begun(self) -> bool:
        """Whether it was started."""
        return self._thread is not None

    def start(self, say: Callable[[str], None]) -> None:
        """Begin, once; `say` is called from the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(say,), name="upkeep", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it; one that was not started is none to end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_END_S)

    def _run(self, say: Callable[[str], None]) -> None:
        keeper = importlib.import_module("dlconsole.services.keeper")
        keeper.run(self._settings, self._stop, say)


class DlconsoleApp(App[None], inherit_bindings=False):
    """Asks `reader` for snapshots and shows them; never ends by itself. Once it has shown one, it starts
    the `upkeep`.

    `on_quit_note` is asked when someone quits: what would end with the console, in words for a
    question; empty where nothing would. `now` is a steady clock in seconds.
    """

    TITLE = "dlconsole"
    CSS_PATH = Path(__file__).with_name("app.tcss")
    COMMANDS: ClassVar = {ActionProvider}
    COMMAND_PALETTE_BINDING = next(a for a in ACTIONS if a.id == "command_palette").keys[0]
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_of(Scope.APP)]
    DEFAULT_MODE = "overview"
    ALLOW_SELECT = False

    def __init__(
        self,
        settings: Settings,
        reader: SnapshotReader,
        *,
        redis_name: str,
        upkeep: LateUpkeep | None = None,
        on_quit_note: Callable[[], str] = str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.register_theme(THEME)
        self.theme = THEME.name
        self.animation_level = "none"
        self._settings = settings
        self._redis_name = redis_name
        self._upkeep = upkeep
        self._on_quit_note = on_quit_note
        self._now = now
        self._poller = Poller(reader, self._publish, refresh_s=settings.console.refresh_s, now=now)
        self._poll = Poll(None, Link(LinkState.CONNECTING, now()))
        self._frozen: Poll | None = None
        self.add_mode("overview", lambda: OverviewScreen(settings, self.picture, now))

    # -- the picture -----------------------------------------------------------------------

    def on_mount(self) -> None:
        """Begin to poll as soon as something can be seen; end in order when the system says so."""
        self.call_after_refresh(self.run_worker, self._poller.run(), group="poller")
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self.exit)

    def on_unmount(self) -> None:
        """End the upkeep with the console."""
        if self._upkeep is not None:
            self._upkeep.stop()

    def _publish(self, poll: Poll) -> None:
        self.post_message(Polled(poll))

    def on_polled(self, message: Polled) -> None:
        """Show what is new; behind the first picture of a fleet, begin to keep it."""
        self._poll = message.poll
        self._show()
        if self._upkeep is not None and not self._upkeep.begun and self._poll.link.state is LinkState.LIVE:
            self.call_after_refresh(self._upkeep.start, self._tell)

    def _tell(self, text: str) -> None:
        """Say in passing what happened; from any thread."""
        self.notify(text, markup=False)

    @property
    def picture(self) -> Picture:
        """What the screens show now. A frozen picture keeps its snapshot, not its connection."""
        shown = self._frozen or self._poll
        return Picture(
            shown.snapshot,
            self._poll.link,
            self._redis_name,
            self._poller.refresh_s,
            frozen=self._frozen is not None,
        )

    def _show(self) -> None:
        base = next(iter(self.screen_stack), None)  # none at its very beginning and end
        if isinstance(base, LiveScreen) and base.is_mounted:
            with self.batch_update():
                base.show_picture(self.picture)

    # -- actions ---------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A read-only context hides and refuses what changes something."""
        del parameters
        return allowed(action, read_only=self._settings.read_only)

    def action_help(self) -> None:
        """Every key of the screen."""
        base = next(iter(self.screen_stack), None)  # none at its very beginning and end
        if isinstance(base, LiveScreen):
            name = base.actions_name
            self.push_screen(HelpScreen(name, actions_of(name, read_only=self._settings.read_only)))

    def action_freeze(self) -> None:
        """Hold the picture as it is, or let it go on with the newest."""
        self._frozen = self._poll if self._frozen is None else None
        self._show()

    def action_refresh_less(self) -> None:
        """The next longer interval."""
        self._set_refresh(min((s for s in REFRESH_STEPS_S if s > self._poller.refresh_s), default=None))

    def action_refresh_more(self) -> None:
        """The next shorter interval."""
        self._set_refresh(max((s for s in REFRESH_STEPS_S if s < self._poller.refresh_s), default=None))

    def _set_refresh(self, seconds: float | None) -> None:
        if seconds is not None:
            self._poller.refresh_s = seconds
            self._show()

    async def action_quit(self) -> None:
        """Leave; asks first where something would end with the console."""
        note = self._on_quit_note()
        if not note:
            self.exit()
            return
        self.push_screen(ConfirmScreen("Quit", note, yes="Quit", no="Stay"), self._on_quit_answer)

    def _on_quit_answer(self, answer: bool | None) -> None:
        if answer:
            self.exit()

    async def action_interrupt(self) -> None:
        """As quitting; a second time, while the question stands, it is the answer."""
        if isinstance(self.screen, ConfirmScreen):
            self.exit()
        else:
            await self.action_quit()


class LateReader:
    """The fleet's reader, imported and built when the first question is asked: by then the console
    can be seen, and answers to keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader: SnapshotReader | None = None

    async def read_snapshot(self) -> FleetSnapshot:
        """As `FleetReader`. Raises RedisError."""
        if self._reader is None:
            fleet = await asyncio.to_thread(importlib.import_module, "dlconsole.services.fleet")
            self._reader = fleet.FleetReader(self._settings)
        return await self._reader.read_snapshot()

    async def close(self) -> None:
        """As `FleetReader`."""
        if self._reader is not None:
            await self._reader.close()


def run_console(settings: Settings, redis_name: str, on_quit_note: Callable[[], str] = str) -> int:
    """Open the console on the Redis that `settings` name; the exit status."""
    app = DlconsoleApp(
        settings,
        LateReader(settings),
        redis_name=redis_name,
        upkeep=LateUpkeep(settings),
        on_quit_note=on_quit_note,
    )
    app.run()
    return app.return_code or 0
