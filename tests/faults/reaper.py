"""A process that reaps until its standard input ends; then it prints how many tasks it gave back."""

from __future__ import annotations

import select
import sys

from dlconsole.errors import RedisUnavailable
from dlconsole.services.connection import connect
from dlconsole.services.keys import Keys
from dlconsole.services.upkeep import keep


def main(url: str) -> None:
    given_back = 0
    with connect(url, name="reaper") as client:
        print("ready", flush=True)
        sys.stdin.readline()
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                given_back += keep(client, Keys("ds"), url).given_back
            except RedisUnavailable:
                continue
    print(given_back)


if __name__ == "__main__":
    main(sys.argv[1])
