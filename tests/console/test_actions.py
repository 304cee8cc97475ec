"""The action table, and what is made of it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from dlconsole.actions import ACTIONS, SCREENS, Group, Scope, actions_of, grouped, key_word, key_words

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_keys_is_the_table() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "keys.py"))["page"]()
    assert (ROOT / "docs" / "keys.md").read_text() == page, "run: python scripts/keys.py"
    assert all(action.words in page for action in ACTIONS)


def test_no_two_actions_of_a_screen_share_a_key() -> None:
    for screen in SCREENS:
        keys = [key for action in actions_of(screen, read_only=False) for key in action.keys]
        assert len(keys) == len(set(keys))


def test_ids_are_unique_and_every_action_is_described() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    assert all(action.words and action.keys for action in ACTIONS)


def test_danger_is_never_on_a_lower_case_key() -> None:
    assert not [a.id for a in ACTIONS if a.danger and any(k.islower() for k in a.keys)]


def test_keys_are_written_for_readers() -> None:
    assert [key_word(key) for key in ("ctrl+p", "question_mark", "space", "G", "up")] == [
        "Ctrl+P",
        "?",
        "Space",
        "G",
        "↑",
    ]
    assert key_words(next(a for a in ACTIONS if a.id == "row_up")) == "↑ k"


def test_groups_keep_their_order_and_empty_ones_go() -> None:
    moving = [action for action in ACTIONS if action.scope is Scope.TABLE]
    assert list(grouped(moving)) == [Group.MOVING]
    assert list(grouped(reversed(ACTIONS))) == list(Group)


def test_the_table_and_the_poller_load_no_textual() -> None:
    code = "import sys, dlconsole.actions, dlconsole.poller; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
