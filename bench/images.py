"""What the checks of a picture cost in the fetch loop, beside Pillow reading the header: µs a picture.

python bench/images.py [--json]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import io
import json
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from dlconsole import log
from dlconsole.settings import Settings
from dlconsole.workers.image_size import size_of
from dlconsole.workers.images import is_whole, sniff
from dlconsole.workers.verify import DecoderPool

_FORMATS = {
    "JPEG": {"quality": 92},
    "JPEG progressive": {"quality": 92, "progressive": True},
    "PNG": {},
    "GIF": {},
    "WEBP": {"quality": 90},
    "WEBP lossless": {"lossless": True},
    "AVIF": {},
    "BMP": {},
    "TIFF": {},
    "ICO": {},
}


def picture(label: str, options: dict[str, object]) -> bytearray:
    """A picture of 320 by 240 with grain, so that it compresses as a photograph does."""
    random = np.random.default_rng(7)
    blobs = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((320, 240))
    grain = random.integers(0, 24, (240, 320, 1), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.asarray(blobs) // 2 + grain).save(sink, label.partition(" ")[0], **options)
    return bytearray(sink.getvalue())


def micros(call: Callable[[], object]) -> float:
    """The best of seven: µs a call."""
    count = 1
    while True:
        began = time.perf_counter()
        for _ in range(count):
            call()
        if time.perf_counter() - began > 0.01:
            break
        count *= 2
    best = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - began) / count)
    return best * 1e6


def decoding(body: bytearray, count: int, rounds: int) -> dict[str, object]:
    """Pictures a second through one decoder, and the ratios to decoding here, a round each."""
    settings = Settings.model_validate({"worker": {"verify": "decode", "verify_processes": 1}})
    woken = threading.Event()
    pool: DecoderPool[int] = DecoderPool(settings.worker, log.configure(settings.log), woken.set)
    pool.start()
    rates, ratios = [], []
    for index in range(rounds + 1):
        began = time.perf_counter()
        for number in range(count):
            pool.submit(number, body, "JPEG")
        while pool.pending:
            woken.wait()
            woken.clear()
            assert not any(failure for _, failure in pool.take())
        pooled_s = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(count):
            with Image.open(io.BytesIO(body)) as image:
                image.load()
        here_s = time.perf_counter() - began
        if index:  # the first round starts the process
            rates.append(count / pooled_s)
            ratios.append(here_s / pooled_s)
    pool.close()
    return {"images_per_s": statistics.median(rates), "ratio": statistics.median(ratios), "ratios": ratios}


def main() -> int:
    """Measure each format; 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    rows = []
    for label, options in _FORMATS.items():
        body, name = picture(label, options), label.partition(" ")[0]
        row = {
            "format": label,
            "kilobytes": round(len(body) / 1000, 1),
            "sniff_us": micros(lambda body=body: sniff(body)),
            "whole_us": micros(lambda body=body, name=name: is_whole(body, name)),
            "size_us": micros(lambda body=body, name=name: size_of(body, name)),
            "pillow_open_us": micros(
                lambda body=body, name=name: Image.open(io.BytesIO(body), formats=[name])
            ),
        }
        row["all_us"] = row["sniff_us"] + row["whole_us"] + row["size_us"]
        rows.append(row)
    decoded = decoding(picture("JPEG", {"quality": 92}), 1000, 5)
    if args.json:
        print(json.dumps({"checks": rows, "decoding": decoded}))
        return 0
    print(f"{'format':<18}{'KB':>7}{'sniff':>8}{'whole':>8}{'size':>8}{'all':>8}{'Pillow opens':>14}   µs")
    for row in rows:
        parts = [row[key] for key in ("sniff_us", "whole_us", "size_us", "all_us", "pillow_open_us")]
        sniffed, whole, size, all_us, pillow = parts
        print(
            f"{row['format']:<18}{row['kilobytes']:>7}{sniffed:>8.2f}{whole:>8.2f}{size:>8.2f}{all_us:>8.2f}{pillow:>14.1f}"
        )
    print(
        f"decoding the JPEG: {decoded['images_per_s']:,.0f} a second through one process, "
        f"{decoded['ratio']:.2f} of decoding here ({min(decoded['ratios']):.2f} to {max(decoded['ratios']):.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
