"""Writes docs/keys.md from the action table: python scripts/keys.py"""

from __future__ import annotations

from pathlib import Path

from dlconsole.actions import SCREENS, actions_of, grouped, key_word

TARGET = Path(__file__).resolve().parents[1] / "docs" / "keys.md"
_HEAD = """\
# Keys

Written by `scripts/keys.py` from the action table in `dlconsole/actions.py`; a test holds them equal.
"""


def page() -> str:
    """The whole page, one table a screen."""
    parts = [_HEAD]
    for screen in SCREENS:
        parts.append(f"\n## {screen.capitalize()}\n\n| keys | what they do |\n|---|---|\n")
        for group, actions in grouped(actions_of(screen, read_only=False)).items():
            parts.append(f"| **{group.value}** | |\n")
            for action in actions:
                keys = " ".join(f"`{key_word(key)}`" for key in action.keys)
                notes = [] if action.read_only else ["not in a read-only context"]
                notes += ["cannot be undone"] if action.danger else []
                words = action.words + (f" ({', '.join(notes)})" if notes else "")
                parts.append(f"| {keys} | {words} |\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page())
