"""The Range header of a download (RFC 9110, section 14): one range of bytes."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Unsatisfiable(Exception):
    """The range begins beyond the end."""


def wanted(header: str | None, size: int) -> tuple[int, int, bool]:
    """Which bytes are asked for.

    :param header: the header's value; it may be absent. What is no single range is ignored, as the standard has it.
    :param size: the size of the file.
    :return: the first byte, the byte after the last, and whether it is a range at all.
    :raises Unsatisfiable: it begins beyond the end.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]) or (match[1] and match[2] and int(match[1]) > int(match[2])):
        return 0, size, False
    if not match[1]:
        first, end = max(0, size - int(match[2])), size
    else:
        first, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    if first >= size or first >= end:
        raise Unsatisfiable
    return first, end, True
