"""Where images go: never into a ledger, and as the worker's layout says."""

from __future__ import annotations

import time

import pytest

from dlconsole.errors import BadPathError
from dlconsole.settings import WorkerSettings
from dlconsole.workers.places import Layout, Place


def layout(**settings: str) -> Layout:
    return Layout(WorkerSettings.model_validate(settings))


@pytest.mark.parametrize(
    "path", ["/ds/ledger/x.jsonl", "ds/ledger/x", "/ds/Ledger/a/b.jpg", "/other/ledger/x.jpg", "/ds/ledger"]
)
def test_no_task_leads_into_a_ledgers_folder(path: str) -> None:
    with pytest.raises(BadPathError, match="ledger"):
        layout().place_of(path)


def test_a_folder_of_that_name_elsewhere_is_a_folder() -> None:
    assert layout().place_of("/ledger/x.jpg") == Place("ledger", "x.jpg")
    assert layout().place_of("/ds/images/ledger/x.jpg") == Place("ds/images/ledger", "x.jpg")
    assert layout(layout="hourly").place_of("/ds/ledger/x.jpg") == Place("ds/ledger", "x.jpg")


@pytest.mark.parametrize("path", ["/ledger/x.jsonl", "LEDGER/x.jpg", "/ledger"])
def test_an_hour_may_be_the_name_of_a_dataset(path: str) -> None:
    with pytest.raises(BadPathError, match="ledger"):
        layout(layout="hourly").place_of(path)


def test_hourly_puts_the_local_hour_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        before = time.strftime("%Y%m%d%H")
        found = layout(layout="hourly").final(Place("ds/images", "x.jpg"))
        assert found in {Place(f"{hour}/ds/images", "x.jpg") for hour in (before, time.strftime("%Y%m%d%H"))}
        assert layout(layout="hourly").final(Place("", "x.jpg")).folder.isdecimal()
        assert not found.folder.startswith(time.strftime("%Y%m%d%H", time.gmtime()))
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("name", "image_format", "real"),
    [
        ("x.jpg", "WEBP", "x.webp"), ("x.jpeg", "JPEG", "x.jpg"), ("x.PNG", "JPEG", "x.jpg"),
        ("x", "PNG", "x.png"), ("x.php", "GIF", "x.php.gif"), ("a.b.tif", "TIFF", "a.b.tiff"),
        (".jpg", "PNG", ".jpg.png"), ("x.", "ICO", "x..ico"), ("x.jpg", "", "x.jpg"),
    ],
)  # fmt: skip
def test_names_end_as_the_format_that_was_found(name: str, image_format: str, real: str) -> None:
    assert layout(ext="real").final(Place("ds", name), image_format) == Place("ds", real)
    assert layout().final(Place("ds", name), image_format) == Place("ds", name)
