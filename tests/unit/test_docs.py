"""The documents are true to the code: files, links, commands and flags exist, and generated pages are new."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlconsole import cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dlconsole"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def without_blocks(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_code(path: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_blocks(path))


# -- files and links ------------------------------------------------------------------------------


def modules() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        if path.suffix in {".py", ".lua", ".tcss"} and (path.name != "__init__.py" or "/" not in name):
            yield name


def test_every_file_of_the_package_is_named_in_the_architecture() -> None:
    named = set(inline_code(ARCHITECTURE))
    assert [name for name in modules() if name not in named] == []


def test_every_file_named_in_the_architecture_exists() -> None:
    words = {word for code in inline_code(ARCHITECTURE) for word in code.split()}
    paths = {word for word in words if re.fullmatch(r"[\w./-]+(/|\.(py|lua|tcss|md|svg|toml|txt))", word)}
    assert len(paths) > 70
    missing = [path for path in paths if not ((PACKAGE / path).exists() or (ROOT / path).exists())]
    assert missing == []


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings get on code hosts."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path)) if "://" not in link]
    for link in links:
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


# -- commands and flags ---------------------------------------------------------------------------


def flags_of(words: list[str]) -> set[str]:
    parser, _ = cli._parser_for(words)
    return {flag for action in parser._actions for flag in action.option_strings}


def all_flags() -> set[str]:
    return flags_of(["--version"]).union(*(flags_of([name]) for name in cli.COMMANDS)) | {"--worker"}


def block_commands(path: Path) -> Iterator[list[str]]:
    """The words behind `dlconsole` in every line of a block of code that runs it."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            found = re.match(r"(?:.*\| |ExecStart=\S*/|\$ )?dlconsole(?: (?!demo:)|$)(.*)", line)
            if found:
                words = shlex.split(found[1], comments=True)
                yield words[: words.index("|")] if "|" in words else words


@page
def test_every_command_in_a_block_is_accepted_as_it_stands(path: Path) -> None:
    for words in block_commands(path):
        parser, rest = cli._parser_for(words)
        try:
            parser.parse_args(rest)
        except SystemExit:
            pytest.fail(f"{path.name}: dlconsole {shlex.join(words)}")


def test_the_readme_shows_every_command_but_the_one_that_needs_no_name() -> None:
    shown = {cli._split_command(words)[0] for words in block_commands(ROOT / "README.md")}
    assert shown == set(cli.COMMANDS)


@page
def test_every_command_and_flag_in_a_sentence_exists(path: Path) -> None:
    known = all_flags()
    for code in inline_code(path):
        if code.startswith("dlconsole "):
            words = code.removeprefix("dlconsole ").split()
            assert words[0].startswith("-") or words[0] in cli.COMMANDS, code
            assert {word for word in words if word.startswith("--")} <= flags_of(words) | {"--worker"}, code
        elif code.startswith("--"):
            assert code.split()[0] in known, code


# -- tables ---------------------------------------------------------------------------------------


@page
def test_every_row_of_a_table_stands_under_its_heading(path: Path) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", without_blocks(path), re.MULTILINE)
    assert [block for block in blocks if not re.match(r".*\n\|(?:[ :]*-+[ :]*\|)+\n", block)] == []


# -- pages that are made --------------------------------------------------------------------------


def test_the_page_of_settings_is_made_from_the_model() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "settings_doc.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == made, "run: python scripts/settings_doc.py"
    tables = made[made.index("| key |") :]
    assert [line for line in tables.splitlines() if ("|" in line) != line.startswith("|")] == []
