"""What can be set: values that are taken, values that are refused, and URLs shown without passwords."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dlconsole.settings import ContextSettings, Section, Settings, descriptions, mask_url, rule_of, xdg_dir


def refusals(**values: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    return [detail["msg"] for detail in caught.value.errors()]


def test_units_are_read(tmp_path: Path) -> None:
    settings = Settings(fetch={"deadline_s": "500ms", "max_bytes": "10MB"}, worker={"store_dir": tmp_path})
    assert (settings.fetch.deadline_s, settings.fetch.max_bytes) == (0.5, 10**7)


def test_settings_pass_through_json_unchanged(tmp_path: Path) -> None:
    settings = Settings(
        redis="redis://:p%40@h", worker={"store_dir": tmp_path}, contexts={"a": {"colour": "red"}}
    )
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_the_environment_is_not_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCONSOLE_DATASET", "other")
    assert Settings().dataset == "default"


def test_an_xdg_folder_must_be_absolute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/elsewhere")
    assert xdg_dir("XDG_STATE_HOME", ".local/state") == Path("/var/elsewhere/dlconsole")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert xdg_dir("XDG_STATE_HOME", ".local/state") == home / ".local/state/dlconsole"


def test_every_setting_says_what_it_is_and_what_it_takes() -> None:
    sections = [field.annotation for field in Settings.model_fields.values() if _is_section(field.annotation)]
    assert all(section.__doc__ for section in sections)
    models = (Settings, ContextSettings, *sections)
    settings = [
        (model, name, field)
        for model in models
        for name, field in model.model_fields.items()
        if not _is_section(field.annotation)
    ]
    assert len(settings) > 30
    assert [name for model, name, _ in settings if not descriptions(model).get(name)] == []
    assert [name for _, name, field in settings if not rule_of(field)] == ["contexts"]


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/0",
        "rediss://u:p@h:6379/15",
        "redis://[::1]:6379/0",
        "redis://:p%40%23w@h/0",
        "redis://h?db=3",
        "rediss://h/0?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock",
        "unix://u:p@/run/redis.sock?db=1",
    ],
)
def test_a_redis_url_is_accepted(url: str) -> None:
    assert Settings(redis=url).redis == url


@pytest.mark.parametrize(
    "url",
    [
        "h:6379",
        "http://h",
        "redis://",
        "redis://h:port",
        "redis://h:0",
        "redis://h:99999",
        "redis://h/abc",
        "redis://h/-1",
        "redis://[::1",
        "redis://h/0?retry=5",
        "redis://u:12#w@h",
        "redis://u:12?w@h",
        "redis://u:12/w@h",
        "unix://relative",
        "redis://h\n",
    ],
)
def test_another_url_is_refused_without_being_shown(url: str) -> None:
    (message,) = refusals(redis=url)
    assert message.startswith("Value error, expected redis://HOST:PORT/DB")
    assert "w@h" not in message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://proxy:3128",
        "https://proxy",
        "http://u:p%40ss%20word@proxy:3128/",
        "socks5h://u:p:w!$&'()*+,;=~@proxy",
        "http://token@[::1]:1",
    ],
)
def test_a_proxy_is_accepted(url: str) -> None:
    assert Settings(fetch={"proxy": url}).fetch.proxy == url


@pytest.mark.parametrize(
    "url",
    [
        "proxy:3128",
        "socks4://proxy",
        "http://proxy/path",
        "http://u:wr@ng-s3cret@proxy",
        "socks5h://u:wr@ng-s3cret@proxy",
        "http://u:s3cret with spaces@proxy",
        "http://u:a[s3cret]b@proxy",
        "http://u:s3cret%zz@proxy",
        "http://u:s3cret%0d%0a@proxy",
        "http://u:s3cret^|@proxy",
        "http://u:s3cret/more@proxy",
        "http://u:s3cret#more@proxy",
        "http://u:s3crét@proxy",
    ],
)
def test_another_proxy_is_refused_without_being_shown(url: str) -> None:
    (message,) = refusals(fetch={"proxy": url})
    assert message.startswith("Value error, expected http://HOST:PORT")
    assert "as %XX" in message
    assert "s3cr" not in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:s3cret@h:1/0", "redis://u:***@h:1/0"),
        ("redis://:s3cret@h", "redis://:***@h"),
        ("redis://h/0?password=s3cret&db=1", "redis://h/0?password=***&db=1"),
        ("rediss://h/0?ssl_password=s3cret", "rediss://h/0?ssl_password=***"),
        ("redis://h/0?p%61ssword=s3cret", "redis://h/0?p%61ssword=***"),
        ("unix://u:s3cret@/run/r.sock", "unix://u:***@/run/r.sock"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://[::1", "***"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown
