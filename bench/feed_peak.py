"""The most memory that feeding a list takes: `python bench/feed_peak.py FILE REDIS` feeds it, with nothing loaded
but what the feeder needs, and prints the bytes and how many tasks it fed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

from dlconsole.services.feeder import feed
from dlconsole.settings import Settings


def main() -> int:
    """Feed and print."""
    path, url = sys.argv[1:]
    fed = feed(Path(path), Settings(redis=url, dataset="bench")).fed
    # Not ru_maxrss: a child's begins with what its parent had when it was started.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    print(int(peak_kib) * 1024, fed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
