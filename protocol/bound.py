"""What a Bind tells of what is about to run: the names of settings among its values, and whether only that runs."""

import re
import struct
from struct import Struct
from typing import Final

_int16 = Struct("!H").unpack_from
_int32 = Struct("!I").unpack_from

_write_int32 = Struct("!I").pack

_SYNC: Final = b"S\0\0\0\4"
_NULL: Final = 0xFFFFFFFF
_CALL: Final = re.compile(rb'\bset_config"?\s*\(\s*(?:\$(\d+)\s*(?:::\s*(?:text|varchar)\s*)?,)?', re.IGNORECASE)


def names_bound(text: bytes, bind: bytes, at: int) -> tuple[str, ...] | None:
    """Return the names that `bind`, a Bind whose own names end at `at`, gives to the calls of set_config() in `text`.

    None if one of the calls gets its name in another way.
    """
    numbers = {int(call[1] or 0) for call in _CALL.finditer(text)}
    values = _values(bind, at + 1)
    if not numbers or not values or not 0 < min(numbers) <= max(numbers) <= len(values):
        return None
    return tuple(values[number - 1].decode("utf-8", "surrogateescape") for number in numbers)


def runs_last(data: bytes, at: int, portal: bytes) -> bool:
    """Tell whether an Execute of `portal`, maybe behind its Describe, and the Sync are what is at `data[at:]`."""
    named = portal + b"\0"
    describe = b"D" + _write_int32(len(named) + 5) + b"P" + named
    if data.startswith(describe, at):
        at += len(describe)
    execute = b"E" + _write_int32(len(named) + 8) + named
    return data.startswith(execute, at) and data.startswith(_SYNC, at + len(execute) + 4)


def _values(bind: bytes, at: int) -> list[bytes]:
    """Return the parameters, as they are: a name reads the same in both formats. None at all if one is cut off."""
    found: list[bytes] = []
    try:
        at += 2 + 2 * _int16(bind, at)[0]
        count = _int16(bind, at)[0]
        at += 2
        for _ in range(count):
            length = _int32(bind, at)[0]
            at += 4
            value = bind[at : at + length] if length != _NULL else b""
            found.append(value)
            at += len(value)
    except struct.error:
        return []
    return found if at <= len(bind) else []
