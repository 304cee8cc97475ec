"""Textual's bindings, made from the action table."""

from __future__ import annotations

from textual.binding import Binding

from dlconsole.actions import ACTIONS, Scope, key_words


def bindings_of(scope: Scope) -> list[Binding]:
    """The bindings of whatever carries out the actions of `scope`."""
    return [
        Binding(
            ",".join(action.keys),
            action.id,
            action.words,
            key_display=key_words(action),
            show=False,
            priority=action.urgent,
        )
        for action in ACTIONS
        if action.scope is scope
    ]
