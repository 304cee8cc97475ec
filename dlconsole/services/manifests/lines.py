"""Text → blocks of lines. Read in chunks, so that memory is flat in the size of the list and of its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from dlconsole.services.manifests.rows import Block, Idle, Stopped

BOM: Final = b"\xef\xbb\xbf"


def line_blocks(
    read: Callable[[], bytes], at: int, most: int, max_line_bytes: int, idle: Idle = lambda: True
) -> Iterator[Block]:
    """Blocks of at most `most` lines. `read` gives what comes next from the offset `at` on, nothing at the
    end. Positions count what was consumed: whole lines, each with its newline. Inside a line that is too
    long, and may have no end, `idle` is asked. Raises Stopped, and what `read` raises.
    """
    rest, cut = b"", 0  # of the last line: what is kept, or how long it is where that is too long
    read_to = end = said = at
    while chunk := read():
        read_to += len(chunk)
        if at == end == 0 and not rest and not cut and chunk.startswith(BOM):
            chunk, end = chunk[len(BOM) :], len(BOM)
        if cut:
            tail, newline, chunk = chunk.partition(b"\n")
            cut += len(tail) + len(newline)
            if not newline:
                if not idle():
                    raise Stopped
                continue
            end, cut = end + cut, 0
            said = end
            yield Block([], end, too_long=1)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for start in range(0, len(lines), most):
            part = lines[start : start + most]
            end += sum(map(len, part)) + len(part)
            said = end
            yield Block(part, end)
        if len(rest) > max_line_bytes:
            rest, cut = b"", len(rest)
    if read_to > said:
        yield Block([rest] if rest else [], read_to, too_long=1 if cut else 0)
