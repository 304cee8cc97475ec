"""Data sets whose lists are known: the format, the names of columns without a header, and their roles.

Sources: laion.ai/blog/laion-400-open-dataset and laion-5b, github.com/kakaobrain/coyo-dataset,
ai.google.com/research/ConceptualCaptions/download, github.com/google-research-datasets/conceptual-12m,
huggingface.co/datasets/mlfoundations/datacomp_pools, wukong-dataset.github.io, opendatalab.com.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Preset:
    """Each role's possible columns, the first that is there counts; of `url` and `caption` one must be."""

    format: str
    url: tuple[str, ...]
    caption: tuple[str, ...]
    id: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    ext: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """The columns in their order, where the files have no header."""


PRESETS: Final[dict[str, Preset]] = {
    "laion400m": Preset("parquet", url=("URL",), caption=("TEXT",), id=("SAMPLE_ID",)),
    # `hash` is a 64-bit number of LAION's own, no digest of the image: it stays a column like others.
    "laion2b": Preset("parquet", url=("URL", "url"), caption=("TEXT", "caption"), id=("SAMPLE_ID", "key")),
    "coyo700m": Preset("parquet", url=("url",), caption=("text",), id=("id",)),
    "cc3m": Preset("tsv", url=("url",), caption=("caption",), names=("caption", "url")),
    "cc12m": Preset("tsv", url=("url",), caption=("caption",), names=("url", "caption")),
    "datacomp": Preset("parquet", url=("url",), caption=("text",), id=("uid",), hash=("sha256",)),
    "wukong": Preset("csv", url=("url",), caption=("caption",)),
    "opendatalab-laion": Preset(
        "parquet", url=("URL",), caption=("TEXT",), id=("id", "SAMPLE_ID"), ext=("image_suffix",)
    ),
}
