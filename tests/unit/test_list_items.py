"""From a list to the queue's items: which column is what, what travels along, and what is left out."""

from __future__ import annotations

import base64
import csv
import io
import json
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from list_files import write_parquet

from dlconsole.errors import FeedError
from dlconsole.services.columns import Columns, choose
from dlconsole.services.feed_report import FeedReport
from dlconsole.services.feeder import count
from dlconsole.services.items import Tally
from dlconsole.services.manifests import BadRow, Block, Header, Row, Table
from dlconsole.services.manifests.rows import SAMPLE_ROWS
from dlconsole.services.row_items import RowWriter
from dlconsole.settings import FeedSettings, Settings

URL = "http://a.example/1.png"
DIGEST = sha256(URL.encode()).hexdigest()


def settings(**feed: Any) -> Settings:
    return Settings.model_validate({"dataset": "ds", "feed": feed})


def fed(path: Path, **feed: Any) -> tuple[list[dict[str, Any]], FeedReport]:
    """The items of a list, without what is the same for all, and the report."""
    items: list[bytes] = []
    report = count(path, settings(**feed), on_tasks=items.extend)
    return [json.loads(item) for item in items], report


def without_names(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in {"img_path", "img_url", "key"}}


# -- where the first rows are none ----------------------------------------------------------------

GOOD = [{"url": URL, "caption": "a cat"}, {"url": URL, "caption": "a dog"}]
LONG = {"url": "http://a.example/" + "x" * 1_100_000, "caption": "long"}
FRONTS = {
    "a row that is too long": json.dumps(LONG) + "\n",
    "blanks": " " * 1_100_000 + "\n",
    "comments": "# comment\n" * 300,
    "no objects": "[7]\n" * 300,
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_columns_are_found_behind_rows_that_are_none(
    kind: str, front: str, is_stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"list.{kind}"
    path.write_text(FRONTS[front] + "".join(json.dumps(row) + "\n" for row in GOOD))
    with path.open("rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        place = Path("-") if is_stream else path
        items, report = fed(place, max_row_bytes=2048, max_url_bytes=1024, format=kind)
    assert [item["caption"] for item in items] == ["a cat", "a dog"]
    assert report.tasks == 2
    # Comments in json go on up to the next brace.
    assert report.bad == {"blanks": kind == "jsonl", "comments": 300 if kind == "jsonl" else 1}.get(
        front, 300 if front == "no objects" else 1
    )


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_list_without_any_row_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"list.{kind}"
    path.write_text("7\n" * 3000)
    with pytest.raises(FeedError, match=r"none of its rows can be read \(no JSON object\)"):
        fed(path)


def test_a_role_that_the_first_rows_do_not_have_is_found_where_it_shows_up(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    rows: list[dict[str, Any]] = [{"url": URL, "w": 1}] * SAMPLE_ROWS
    rows += [
        {"url": URL, "ALT": "a cat", "uid": 7, "hash": "ab" * 16, "z": 2},
        {"url": URL, "w": 3, "hash": 5},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    late, last = map(without_names, fed(path)[0][-2:])
    assert late == {"caption": "a cat", "id": 7, "hash": "ab" * 16, "columns": {"z": 2}}
    assert last == {"columns": {"w": 3, "hash": 5}}
    late, last = map(without_names, fed(path, caption_column="none", keep="none")[0][-2:])
    assert (late, last) == ({"id": 7, "hash": "ab" * 16}, {})


# -- what is called csv ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("url;caption\nhttp://a/1.jpg;one\nhttp://a/2.jpg;two, three\n", "semicolons"),
        ("url|n|caption\nhttp://a/1.jpg|1|one\nhttp://a/2.jpg|2|two, three\n", "bars"),
        ('photo\tcaption\nhttp://a/1.jpg\tone\nhttp://a/2.jpg\t"two, three"\n', "tabs"),
        ("http://a/1.jpg;one\nhttp://a/2.jpg;two, three\n", "semicolons"),
        ('url,caption\nhttp://a/1.jpg,one\nhttp://a/2.jpg,"two, three"\n', ""),
        ('a,b;c,caption\n1,http://a/1.jpg,one\n2,http://a/2.jpg,"two, three"\n', ""),
    ],
)
def test_another_separator_is_noticed_and_said(text: str, note: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    items, report = fed(path)
    assert [(item["img_url"], item["caption"]) for item in items] == [
        ("http://a/1.jpg", "one"),
        ("http://a/2.jpg", "two, three"),
    ]
    assert report.columns is not None
    assert report.columns["notes"] == ((f"separated by {note}",) if note else ())


@pytest.mark.parametrize(
    "text", ["http://a/1;jpg\nhttp://a/2;gif\n", "url\nhttp://a/1;jpg\nhttp://a/2;gif\n"]
)
def test_a_separator_inside_urls_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    assert [item["img_url"] for item in fed(path)[0]] == ["http://a/1;jpg", "http://a/2;gif"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_tsv_that_a_writer_of_csv_wrote_is_read_so_and_that_is_said(
    quoting: Any, newline: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.tsv"
    rows = [(URL, 'say "cheese"'), (URL, "two\nlines"), (URL, "a\ttab"), (URL, "plain, é")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting, lineterminator=newline)
        writer.writerows([("url", "caption"), *rows])
    items, report = fed(path)
    assert [(item["img_url"], item["caption"]) for item in items] == rows
    assert "read as tsv-quoted" in str(report.columns)
    if quoting == csv.QUOTE_MINIMAL:
        assert "--format tsv-quoted" in str(fed(path, format="tsv")[1].columns)


@pytest.mark.parametrize(
    ("captions", "is_said"),
    [
        (['5" wide', '"quoted" by many'], False),
        (['"all of it"', "plain"], False),
        (['"say ""cheese"""', '5" wide'], True),
    ],
)
def test_quotes_that_are_text_stay(captions: list[str], is_said: bool, tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text("url\tcaption\n" + "".join(f"{URL}\t{caption}\n" for caption in captions))
    items, report = fed(path)
    assert [item["caption"] for item in items] == captions
    assert ("--format tsv-quoted" in str(report.columns)) == is_said


def test_lines_that_end_with_cr_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"url,caption\rhttp://a/1.jpg,one\rhttp://a/2.jpg,two\r")
    with pytest.raises(FeedError, match="CR alone"):
        fed(path)


# -- presets: each data set's own schema ----------------------------------------------------------

LAION: dict[str, list[Any]] = {
    "SAMPLE_ID": [1581282014547, None],
    "URL": [URL, "http://b.example/2.jpg"],
    "TEXT": ['Silverline, 10" \nbarn owl', "日本の\tcaption"],
    "HEIGHT": [800, 400],
    "WIDTH": [640, 300],
    "LICENSE": ["?", None],
    "NSFW": ["UNLIKELY", None],
    "similarity": [0.3194, float("nan")],
}
COYO = "width height image_phash text_length word_count num_tokens_bert num_tokens_gpt num_faces"
COYO += " clip_similarity_vitb32 clip_similarity_vitl14 nsfw_score_opennsfw2 nsfw_score_gantman"
COYO += " watermark_score aesthetic_score_laion_v2"
FILES: dict[str, tuple[str, Any]] = {
    "laion400m": ("part-0.parquet", LAION),
    "laion2b": (
        "part-0.snappy.parquet",
        LAION
        | {"LANGUAGE": ["en", "ja"], "hash": [-1317762320303122413, 5], "punsafe": [0.1, 0.2]}
        | {"pwatermark": [0.3, 0.4], "AESTHETIC_SCORE": [5.5, 6.5]},
    ),
    "coyo700m": (
        "part-0.parquet",
        {"id": [4140242850529, 1], "url": LAION["URL"], "text": LAION["TEXT"]}
        | {name: ["x" if name == "image_phash" else 1.5] * 2 for name in COYO.split()},
    ),
    "datacomp": (
        "0a1b.parquet",
        {"uid": ["f1", "f2"], "url": LAION["URL"], "text": LAION["TEXT"], "original_width": [1, 2]}
        | {"original_height": [3, 4], "clip_b32_similarity_score": [0.1, 0.2]}
        | {"clip_l14_similarity_score": [0.3, 0.4], "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]], []]}
        | {"sha256": ["ab" * 32, "cd" * 32]},
    ),
    "opendatalab-laion": (
        "laion.parquet",
        {"id": ["'1581282014547'", "'2'"]} | LAION | {"image_suffix": [".png", "jpg"]},
    ),
    "cc3m": (
        "Train_GCC-training.tsv",
        'a "very" typical bus\t' + URL + '\n"quoted"\thttp://b.example/2.jpg\n',
    ),
    "cc12m": ("cc12m.tsv", URL + '\ta "very" typical bus\nhttp://b.example/2.jpg\t"quoted"\n'),
    "wukong": ("wukong_100m_0.csv", f'url,caption\n{URL},"一只, ""猫"""\nhttp://b.example/2.jpg,狗\n'),
}


def list_of(preset: str, folder: Path) -> Path:
    name, content = FILES[preset]
    if isinstance(content, str):
        (folder / name).write_text(content, "utf-8")
        return folder / name
    return write_parquet(folder / name, content)


WANTED: dict[str, dict[str, Any]] = {
    "laion400m": {"id": 1581282014547},
    "laion2b": {"id": 1581282014547},
    "coyo700m": {"id": 4140242850529},
    "datacomp": {"id": "f1", "hash": "ab" * 32},
    "opendatalab-laion": {"id": "'1581282014547'"},
}


@pytest.mark.parametrize("with_preset", [True, False], ids=["with its preset", "found"])
@pytest.mark.parametrize("preset", FILES)
def test_a_list_of_each_data_set_keeps_its_captions_and_columns(
    preset: str, with_preset: bool, tmp_path: Path
) -> None:
    path = list_of(preset, tmp_path)
    items, report = fed(path, **({"preset": preset} if with_preset else {}))
    content = FILES[preset][1]
    if isinstance(content, str):
        captions = ['一只, "猫"', "狗"] if preset == "wukong" else ['a "very" typical bus', '"quoted"']
        assert [without_names(item) for item in items] == [{"caption": caption} for caption in captions]
    else:
        roles = {"URL", "TEXT", "url", "text", "uid", "sha256"}
        roles |= {"id"} if preset != "opendatalab-laion" or with_preset else {"SAMPLE_ID"}
        roles |= {"SAMPLE_ID"} if preset.startswith("laion") else set()
        kept = {name: values[0] for name, values in content.items() if name not in roles}
        wanted = {"caption": LAION["TEXT"][0]} | WANTED[preset] | {"columns": kept}
        if preset == "opendatalab-laion" and not with_preset:
            wanted["id"] = LAION["SAMPLE_ID"][0]
        assert without_names(items[0]) == wanted
        assert items[1]["caption"] == LAION["TEXT"][1]
    assert [item["img_url"] for item in items] == LAION["URL"]
    assert [item["key"] for item in items] == [f"{report.list_id[:12]}-{row}" for row in (1, 2)]
    assert (report.tasks, report.bad) == (2, 0)


def test_what_is_null_is_left_out_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    items, _ = fed(list_of("laion400m", tmp_path))
    assert "id" not in items[1]
    columns = {"HEIGHT": 400, "WIDTH": 300, "LICENSE": None, "NSFW": None, "similarity": None}
    assert items[1]["columns"] == columns


# -- roles ----------------------------------------------------------------------------------------


def chosen(names: str, sample: list[dict[str, Any]] | None = None, **feed: Any) -> Columns:
    return choose(Header(tuple(names.split()), sample or []), FeedSettings.model_validate(feed))


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        ("URL TEXT SAMPLE_ID", ("URL", "TEXT", "SAMPLE_ID", "", "")),
        ("page_url Image-URL ALT uid md5 extension", ("Image-URL", "ALT", "uid", "md5", "extension")),
        ("url image_url title id key sha256 md5", ("image_url", "title", "id", "sha256", "")),
        ("src caption text", ("src", "caption", "", "", "")),
        ("link alt_text image_id image_suffix", ("link", "alt_text", "image_id", "", "image_suffix")),
    ],
)
def test_roles_are_found_by_the_names_that_data_sets_use(names: str, roles: tuple[str, ...]) -> None:
    found = chosen(names)
    assert (found.url, found.caption, found.id, found.hash, found.ext) == roles


def test_a_column_named_hash_is_one_only_where_it_holds_digests() -> None:
    assert chosen("url hash", [{"hash": "Ab" * 16}, {"hash": None}]).hash == "hash"
    for values in ([-1317762320303122413], ["7"], [None], []):
        assert chosen("url hash", [{"hash": value} for value in values]).hash == ""


def test_flags_name_columns_in_any_case_and_say_which_there_are() -> None:
    found = chosen("a B c url", url_column="b", caption_column="c", id_column="none", keep="a")
    assert (found.url, found.caption, found.id, found.kept, found.left_out) == (
        "B",
        "c",
        "",
        ("a",),
        ("url",),
    )
    for flag, setting in (("--url", "url_column"), ("--hash", "hash_column"), ("--keep", "keep")):
        with pytest.raises(FeedError, match=f"no column 'x' .{flag}.; its columns: url, text"):
            chosen("url text", **{setting: "x"})
    assert chosen("url caption text", url_column="caption").caption == "text"
    with pytest.raises(FeedError, match="two roles"):
        chosen("url caption", url_column="url", caption_column="URL")
    with pytest.raises(FeedError, match="looks like one of URLs"):
        chosen("a b", [{"a": "x", "b": "7"}])
    assert chosen("a b", [{"a": "x", "b": " HTTP://h/"}]).url == "b"


def test_a_preset_that_does_not_fit_is_said() -> None:
    with pytest.raises(
        FeedError, match="no column 'TEXT' as lists of preset 'laion400m' have; its columns: URL"
    ):
        chosen("URL caption", preset="laion400m")
    assert chosen("url TEXT", preset="laion400m").url == "url"
    assert chosen("URL words", preset="laion400m", caption_column="words").caption == "words"


def test_of_columns_without_names_the_longest_text_is_the_caption() -> None:
    sample = [
        {"0": "http://a/", "1": "17", "2": "x", "3": "a cat"},
        {"0": "http://b/", "1": "9", "2": "y", "3": "dogs"},
    ]
    found = choose(Header(("0", "1", "2", "3"), sample, has_names=False), FeedSettings())
    assert (found.url, found.caption, found.kept) == ("0", "3", ("1", "2"))


def test_columns_are_said_in_a_line() -> None:
    assert chosen("URL TEXT id w h", keep="w").words() == "url=URL caption=TEXT id=id, kept w, left out h"
    found = chosen("URL suffix")
    assert found.words() == "url=URL ext=suffix, kept suffix"
    assert chosen("URL").words() == "url=URL, no other column kept"


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("small", {"a": 1, "b": "x"}), ("all", {"a": 1, "b": "x"}), ("b", {"b": "x"}), ("none", None)],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_other_columns_travel_along_as_asked(keep: str, kept: Any, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"list.{kind}"
    row = {"url": URL, "a": 1, "b": "x"}
    lines = [json.dumps(row), json.dumps(row | {"late": 2})] if kind == "jsonl" else ["url,a,b", f"{URL},1,x"]
    path.write_text("\n".join(lines))
    items, _ = fed(path, keep=keep)
    if kind == "csv" and kept:
        kept = {name: str(value) for name, value in kept.items()}
    assert items[0].get("columns") == kept
    if kind == "jsonl":
        assert items[1].get("columns") == (kept if keep in {"b", "none"} else kept | {"late": 2})


# -- rows → items ---------------------------------------------------------------------------------

ROLES = Columns("url", "caption", "id", "hash", "ext", max_bytes=100)


def made(
    *rows: Row, columns: Columns = ROLES, template: str = "/{ds}/images/{sha256}.jpg"
) -> tuple[list[bytes], Tally]:
    tally = Tally()
    writer = RowWriter(settings(path_template=template), "0123456789abcdef", columns)
    return writer.tasks(Block([], 0, rows=list(rows)), tally), tally


def test_an_item_has_its_keys_in_their_order_and_its_text_as_it_was() -> None:
    caption = 'x "y" \\ \n\t 日本 \0 \u2028 😀'
    (item,), _ = made({"n": 1, "url": URL, "hash": "AB", "caption": caption, "id": 7, "ext": "png"})
    path = f"/ds/images/{DIGEST}.jpg"
    assert json.loads(item) == {
        "img_path": path, "img_url": URL, "key": "0123456789ab-1", "caption": caption, "id": 7, "hash": "AB",
        "columns": {"n": 1, "ext": "png"},
    }  # fmt: skip
    assert list(json.loads(item)) == ["img_path", "img_url", "key", "caption", "id", "hash", "columns"]
    assert "日本".encode() in item


@pytest.mark.parametrize(
    ("ext", "wanted"), [(".PNG", "png"), ("webp", "webp"), ("php", "png"), (None, "png"), (7, "png")]
)
def test_the_extension_is_the_columns_where_that_is_an_images(ext: Any, wanted: str) -> None:
    (item,), _ = made({"url": URL, "ext": ext}, template="{ds}/{ab}/{cd}/{sha256}.{ext}")
    assert json.loads(item)["img_path"] == f"/ds/{DIGEST[:2]}/{DIGEST[2:4]}/{DIGEST}.{wanted}"


def test_urls_that_are_none_are_bad_rows_and_blank_rows_are_blank() -> None:
    bad = [
        {"url": None}, {"caption": "x"}, {"url": " "}, {"url": 7}, {"url": ["http://a/"]},
        {"url": "http://a/\ud800"}, {"url": b"http://a/\xff"}, {"url": "http://a/\x01"},
        {"url": "http://a/stop_this_task"}, {"url": "h" * 9000}, BadRow("odd", "data"),
    ]  # fmt: skip
    items, tally = made(*bad, None, {"url": f" {URL}\n"}, {"url": URL.encode()}, {"url": "ftp://日本/"})
    whys = [reject.why for reject in tally.rejects]
    assert whys[:5] == ["has no URL"] * 3 + ["its URL is no text"] * 2
    assert whys[5:7] == ["not UTF-8"] * 2
    assert "control" in whys[7] and "stop_this_task" in whys[8] and "longer" in whys[9] and whys[10] == "odd"
    assert [reject.row for reject in tally.rejects] == list(range(1, 12))
    assert tally.rejects[8].data == {"url": "http://a/stop_this_task"}
    assert [json.loads(item)["img_url"] for item in items] == [URL, URL, "ftp://日本/"]
    assert (tally.lines, tally.tasks, tally.bad, tally.blank, tally.not_http) == (15, 3, 11, 1, 1)
    assert [json.loads(item)["key"] for item in items] == [f"0123456789ab-{row}" for row in (13, 14, 15)]


def test_no_item_says_the_text_of_a_stop_sentinel() -> None:
    row = {
        "url": URL,
        "caption": "stop_this_task",
        "id": "xstop_this_task",
        "stop_this_task": {"stop_this_task": 1},
    }
    (item,), _ = made(dict(row))
    assert b"stop_this_task" not in item
    found = json.loads(item)
    assert (found["caption"], found["id"]) == (row["caption"], row["id"])
    assert found["columns"] == {"stop_this_task": {"stop_this_task": 1}}


def test_values_that_json_does_not_know_are_text_or_null() -> None:
    nan = float("nan")
    values = {"nan": nan, "inf": [float("inf")], "bytes": b"\xff", "day": date(2026, 11, 28), "big": 10**30}
    values |= {"at": datetime(2026, 11, 28, 21, tzinfo=UTC), "deep": {"a": [nan, b"x"]}, "odd": "\udc80"}
    for caption in (nan, b"\xe6\x97\xa5", b"\xff", 7, "\ud800"):
        for more in (values, {name: value for name, value in values.items() if name != "odd"}):
            (item,), _ = made({"url": URL, "caption": caption, "id": nan, "hash": b"\xab\xff", **more})
            found = json.loads(item)
            wanted = {nan: None, b"\xe6\x97\xa5": "日", b"\xff": "/w=="}.get(caption, caption)
            assert found.get("caption") == wanted
            assert ("id" in found, found["hash"]) == (False, "abff")
            columns = {
                "nan": None,
                "inf": [None],
                "bytes": base64.b64encode(b"\xff").decode(),
                "day": "2026-11-28",
            }
            columns |= {"big": 10**30, "deep": {"a": [None, "eA=="]}} | (
                {"odd": "\udc80"} if "odd" in more else {}
            )
            at = found["columns"].pop("at")
            assert datetime.fromisoformat(at) == values["at"]
            assert found["columns"] == columns


def test_values_that_are_too_large_stay_behind_and_are_counted() -> None:
    rows = [
        {"url": URL, "caption": "c" * 5000, "a": "x" * 100, "b": "日" * 33, "c": list(range(20))},
        {"url": URL, "a": "x" * 101, "b": "日" * 34, "c": list(range(60)), "d": None},
        {"url": URL, "a": "x" * 101},
    ]
    items, tally = made(*[dict(row) for row in rows])
    found = [json.loads(item) for item in items]
    assert found[0]["columns"] == {"a": rows[0]["a"], "b": rows[0]["b"], "c": rows[0]["c"]}
    assert len(found[0]["caption"]) == 5000
    assert found[1]["columns"] == {"d": None}
    assert "columns" not in found[2]
    assert tally.too_large == {"a": 2, "b": 1, "c": 1}
    (item,), _ = made(dict(rows[1]), columns=Columns("url"))
    assert len(json.loads(item)["columns"]) == 4


def test_every_caption_of_a_real_list_comes_out_byte_for_byte(shared_data: Path) -> None:
    import pyarrow.parquet as pq

    path = shared_data / "urls/laion-10k.parquet"
    items, report = fed(path)
    table = pq.read_table(path)
    assert [item["caption"] for item in items] == table["TEXT"].to_pylist()
    assert [item["img_url"] for item in items] == [url.strip() for url in table["URL"].to_pylist()]
    assert (report.tasks, report.bad) == (10_000, 0)


def test_rows_in_columns_and_rows_one_by_one_give_the_same_items() -> None:
    names = ["url", 'a"b', "caption", "n", "id"]
    rows = [
        {"url": URL, 'a"b': "x", "caption": "c", "n": 1.5, "id": 7},
        {"url": " ", 'a"b': None, "caption": None, "n": None, "id": float("nan")},
        {"url": "http://a/stop_this_task", 'a"b': "y", "caption": "z", "n": 1, "id": None},
        {"url": f" {URL}", 'a"b': "x" * 200, "caption": "stop_this_task", "n": "\ud800", "id": "i"},
    ]
    for left in (names, [name for name in names if name != 'a"b'], ["url"]):
        for columns in (
            ROLES,
            Columns("url", "caption", kept=("n",), drops_others=True, max_bytes=100),
            Columns("url"),
        ):
            some = [{name: row[name] for name in left} for row in rows]
            table = Table(left, [[row[name] for row in some] for name in left])
            assert (len(table), list(table), table[1], list(table[1:3])) == (4, some, some[1], some[1:3])
            wanted, items = Tally(), Tally()
            writer = RowWriter(settings(), "0123456789abcdef", columns)
            found = writer.tasks(Block([], 0, rows=table), items)
            assert found == writer.tasks(Block([], 0, rows=[dict(row) for row in some]), wanted)
            assert (items.too_large, items.tasks, items.bad) == (wanted.too_large, 2, 2)
            assert [reject.data for reject in items.rejects] == some[1:3]
