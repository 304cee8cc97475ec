"""Which column of a list is the URL, the caption, the id, the hash, the extension; which others travel on.

Named by flags or settings, else by a preset, else found by the names that data sets use, else by content.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from dlconsole.errors import FeedError
from dlconsole.services.manifests.rows import Header
from dlconsole.services.presets import PRESETS
from dlconsole.settings import FeedSettings

NONE: Final = "none"
"""Says of a role that no column has it."""
ROLES: Final = ("url", "caption", "id", "hash", "ext")
_KNOWN: Final = {
    # The more special first: where a page has a `url`, its image has an `image_url`.
    "url": "imageurl imgurl imagelink imglink imageuri imguri imagesrc imgsrc photoimageurl contenturl "
    "mediaurl originalurl downloadurl url link src uri href",
    "caption": "caption text alt alttext captions imagecaption title description sentence",
    "id": "uid sampleid imageid imgid photoid id key",
    "hash": "sha256 imagesha256 sha256sum sha256hash md5 imagemd5 md5sum md5hash",
    "ext": "ext extension imagesuffix imageext suffix fileext fileextension",
}
"""As columns are called, in small letters and without `_`, `-` and spaces."""
_HTTP: Final = re.compile(r"\s*https?://", re.IGNORECASE)
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Columns:
    """The roles of a list's columns, '' for none. `kept` are the others that travel on, `left_out` those that
    do not. Where `drops_others`, columns of a row that are neither in a role nor `kept` are taken out of it.
    `max_bytes` is the largest value that travels on; None: any. Where rows may have further columns, `late`
    are the roles that none of the columns in `seen` has: a row's others may. `notes` say of how the list is
    read what a user should know.
    """

    url: str
    caption: str = ""
    id: str = ""
    hash: str = ""
    ext: str = ""
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    drops_others: bool = False
    max_bytes: int | None = None
    late: tuple[str, ...] = ()
    seen: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> frozenset[str]:
        """What must be read of a row."""
        return frozenset({self.url, self.caption, self.id, self.hash, self.ext, *self.kept} - {""})

    def words(self) -> str:
        """For a reader: `url=URL caption=TEXT, kept WIDTH HEIGHT, left out NSFW`."""
        said = [" ".join(f"{role}={getattr(self, role)}" for role in ROLES if getattr(self, role))]
        said.append(f"kept {' '.join(self.kept)}" if self.kept else "no other column kept")
        if self.left_out:
            said.append(f"left out {' '.join(self.left_out)}")
        said += self.notes
        return ", ".join(said)

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        found = asdict(self)
        return {name: found[name] for name in (*ROLES, "kept", "left_out", "notes")}


def choose(header: Header, settings: FeedSettings) -> Columns:
    """The roles of these columns. Raises FeedError where one that was named is not there, or no URL is found;
    the list's name is to be put in front.
    """
    names = header.names
    if header.fault:
        raise FeedError(f"none of its rows can be read ({header.fault}): is that its format? --format")
    if not names:
        return Columns("")
    roles = _named_roles(header, settings)
    for role in ROLES:
        if role not in roles:
            roles[role] = _found_role(role, header, settings.preset, taken=roles)
    if not roles["url"]:
        roles["url"] = _url_by_content(header, taken=roles)
    if not (roles["caption"] or header.has_names or settings.caption_column or settings.preset):
        roles["caption"] = _caption_by_content(header, taken=roles)
    # The extension has no place of its own in an item.
    others = [name for name in names if name not in {*roles.values()} - {roles["ext"]}]
    kept, keeps_others, limit = others, True, None
    if settings.keep == NONE:
        kept, keeps_others = [], False
    elif settings.keep == "small":
        limit = settings.max_column_bytes
    elif settings.keep != "all":
        wanted = [name.strip() for name in settings.keep.split(",") if name.strip()]
        kept = [_named(name, names, "--keep") for name in wanted]
        kept, keeps_others = [name for name in dict.fromkeys(kept) if name in others], False
    left_out = tuple(name for name in others if name not in kept)
    return Columns(
        **roles,
        kept=tuple(kept),
        left_out=left_out,
        drops_others=bool(left_out) or (header.open_ended and not keeps_others),
        max_bytes=limit,
        late=_late_roles(header, settings, roles),
        seen=frozenset(names),
        notes=header.notes,
    )


def late_role(role: str, row: dict[str, Any], columns: Columns) -> str:
    """The column of a row that has this role, of those that the first rows did not have; '' for none."""
    names = tuple(name for name in row if name not in columns.seen)
    return _by_name(role, names, Header(names, [row]))


def _late_roles(header: Header, settings: FeedSettings, roles: dict[str, str]) -> tuple[str, ...]:
    if not header.open_ended or settings.preset:
        return ()
    missing = [role for role in ("caption", "id", "hash") if not roles[role]]
    return tuple(role for role in missing if getattr(settings, f"{role}_column") != NONE)


def _named_roles(header: Header, settings: FeedSettings) -> dict[str, str]:
    """The roles that are set."""
    roles: dict[str, str] = {}
    for role in ROLES:
        wanted = getattr(settings, f"{role}_column")
        if wanted == NONE and role != "url":
            roles[role] = ""
        elif wanted:
            name = _named(wanted, header.names, f"--{role}")
            if name in roles.values():
                raise FeedError(f"cannot have the column {name!r} in two roles (--{role})")
            roles[role] = name
    return roles


def _found_role(role: str, header: Header, preset: str, *, taken: dict[str, str]) -> str:
    names = tuple(name for name in header.names if name not in taken.values())
    return _of_preset(role, names, header, preset) if preset else _by_name(role, names, header)


def _named(wanted: str, names: tuple[str, ...], flag: str) -> str:
    """The column of this name, in any case where only one has it."""
    if wanted in names:
        return wanted
    alike = [name for name in names if name.lower() == wanted.lower()]
    if len(alike) == 1:
        return alike[0]
    raise FeedError(f"has no column {wanted!r} ({flag}); its columns: {', '.join(names)}")


def _of_preset(role: str, names: tuple[str, ...], header: Header, preset: str) -> str:
    candidates: tuple[str, ...] = getattr(PRESETS[preset], role)
    for candidate in candidates:
        if candidate in names:
            return candidate
    for candidate in candidates:
        for name in names:
            if name.lower() == candidate.lower():
                return name
    if role in {"url", "caption"}:
        raise FeedError(
            f"has no column {' or '.join(map(repr, candidates))} as lists of preset {preset!r} have; its "
            f"columns: {', '.join(header.names)}; leave --preset out, or name one with --{role}"
        )
    return ""


def _by_name(role: str, names: tuple[str, ...], header: Header) -> str:
    plain = {}
    for name in reversed(names):
        plain[re.sub(r"[_\-\s]", "", name.lower())] = name
    for known in _KNOWN[role].split():
        if known in plain:
            return plain[known]
    if role == "hash" and "hash" in plain and _are_digests(plain["hash"], header):
        return plain["hash"]
    return ""


def _are_digests(name: str, header: Header) -> bool:
    """Whether a column holds MD5 or SHA-256 digests; LAION's `hash` is a number."""
    values = [row[name] for row in header.sample if row.get(name) is not None]
    return bool(values) and all(isinstance(v, str) and _HEX_DIGEST.fullmatch(v) for v in values)


def _url_by_content(header: Header, *, taken: dict[str, str]) -> str:
    """The column with the most http URLs."""
    counts = {
        name: sum(1 for row in header.sample if _HTTP.match(_text(row.get(name))))
        for name in header.names
        if name not in taken.values()
    }
    best = max(counts, key=lambda name: counts[name], default="")
    if not best or not counts[best]:
        raise FeedError(
            "has no column that looks like one of URLs; name it with --url; its columns: "
            f"{', '.join(header.names)}"
        )
    return best


def _caption_by_content(header: Header, *, taken: dict[str, str]) -> str:
    """Of columns without names the one with the longest texts, numbers and URLs aside."""
    lengths = {}
    for name in header.names:
        if name in taken.values():
            continue
        values = [_text(row.get(name)) for row in header.sample]
        texts = [value for value in values if value and not _HTTP.match(value) and not _is_number(value)]
        if texts and len(texts) * 2 >= len(values):
            lengths[name] = sum(map(len, texts))
    return max(lengths, key=lambda name: lengths[name], default="")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
