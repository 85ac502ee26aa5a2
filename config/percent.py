"""A share of a server's connections, such as 90%, where a number of them may stand."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticKnownError

from config.fields import Count, Takes


@dataclass(frozen=True, slots=True)
class Percent:
    """A share of the connections that a server has for us: of its max_connections less the reserved ones."""

    value: float
    """More than 0, and 100 at most."""

    def __str__(self) -> str:
        return f"{self.value:g}%"


_COUNT: TypeAdapter[int] = TypeAdapter(Count)


def _connections(value: object) -> int | Percent:
    # By hand, as one mistake in a union of types would be reported once for each of them.
    if isinstance(value, Percent):
        return value
    if isinstance(value, str) and value.endswith("%"):
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3})? *%", value, re.ASCII) or not 0 < float(value[:-1]) <= 100:
            raise PydanticKnownError("int_parsing")
        return Percent(float(value[:-1]))
    try:
        return _COUNT.validate_python(value)
    except ValidationError:
        raise PydanticKnownError("int_parsing") from None


Connections = Annotated[
    int | Percent,
    PlainValidator(_connections),
    Takes("COUNT|SHARE", "a whole number, 0 or more, or a share such as 90%"),
]
