"""From values as they were given to Settings, or to one line for each that is wrong, free of secrets.

pydantic judges the values; how a mistake reads is decided here.
"""

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from config.fields import takes
from config.settings import Settings
from config.sources import TABLES, Given
from config.upstream import Upstream, mask

_LONGEST_SHOWN = 100


def with_options_of_the_url(given: Mapping[str, Given]) -> tuple[Mapping[str, Given], list[str]]:
    """Add the settings that the upstream URL's options stand for; and what contradicts them."""
    url = given.get("upstream")
    if url is None or not isinstance(url.value, str):
        return given, []
    try:
        options = dict(Upstream.parse(url.value).tls)
    except ValueError:
        return given, []  # what is wrong with it is said when it is validated
    contradictions = [
        f"{given[name].source.name}: it is not what the options of {url.source.name} say ({given[name].source.place})"
        for name, value in options.items()
        if name in given and given[name].value != value
    ]
    return {**given, **{name: Given(value, url.source) for name, value in options.items()}}, contradictions


def validate(given: Mapping[str, Given]) -> tuple[Settings | None, list[str]]:
    """Return the settings, or what is wrong."""
    # The exception itself goes no further: its text and its traceback could show what was given.
    try:
        return Settings.model_validate({name: each.value for name, each in given.items()}), []
    except ValidationError as error:
        return None, [_explain(details, given) for details in error.errors()]


def _explain(details: ErrorDetails, given: Mapping[str, Given]) -> str:
    """Return the line about one value that pydantic refused."""
    name, *inside = map(str, details["loc"])
    reason = str(details["ctx"]["error"]) if details["type"] == "value_error" else None
    if name not in given:
        return f"{name}: it {reason} (default)"
    source = given[name].source
    if inside and name == "users":
        return f"{source.name}: the password of {'.'.join(inside)} is not text ({source.place})"
    shown = _show(name, given[name].value)
    return f"{source.name}: {shown} {reason or f'is not {takes(Settings.model_fields[name]).words}'} ({source.place})"


def _show(name: str, value: object) -> str:
    """Return a value for a message, or as much of it as can't be secret."""
    if name in (*TABLES, "server_password_source") or not isinstance(value, (str, int, float)):
        return "its value"
    if isinstance(value, str):
        text = mask(value) if name == "upstream" or "://" in value or "@" in value else value
        return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
    return str(value).lower()
