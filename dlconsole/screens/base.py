"""What every screen of the console has in common."""

from __future__ import annotations

from textual.screen import Screen

from dlconsole.picture import Picture


class LiveScreen(Screen[None]):
    """A screen that draws pictures. The app hands each one over; a screen never asks for anything."""

    actions_name: str = ""
    """What `dlconsole.actions.SCREENS` calls it."""

    def show_picture(self, picture: Picture) -> None:
        """Draw what differs from what is shown. Called inside one batch."""
        raise NotImplementedError
