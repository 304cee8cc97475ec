"""What counts as a task's hash."""

from __future__ import annotations

import pytest

from dlconsole.workers.hashes import digest_of, wanted_digest


def test_hex_of_any_case_is_a_digest() -> None:
    assert wanted_digest("AbC0" * 8, "md5") == "abc0" * 8
    assert wanted_digest("AbC0" * 16, "sha256") == "abc0" * 16


@pytest.mark.parametrize(
    "told", [None, 7, True, [], "", "abc", "0" * 31, "0" * 33, "0" * 64, "g" * 32, " " * 32, "٣" * 32]
)
def test_everything_else_is_none(told: object) -> None:
    assert wanted_digest(told, "md5") is None


def test_digests_are_those_of_the_standard() -> None:
    assert digest_of(b"", "md5") == "d41d8cd98f00b204e9800998ecf8427e"
    assert digest_of(bytearray(b"abc"), "sha256").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
