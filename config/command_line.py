"""The command line: --name VALUE or --name=VALUE for each setting and --config; --name and --no-name for booleans.

Done by hand, as argparse stops at the first mistake and quotes what it can't place, which may be a piece of a
password.
"""

import re
from collections import deque
from collections.abc import Sequence

from config.settings import Settings
from config.sources import CONFIG, Given, Reading, Source, unknown

_PLACE = "command line"


def option_name(name: str) -> str:
    """Return the option of a setting: --pool-mode for pool_mode."""
    return "--" + name.replace("_", "-")


def is_boolean(name: str) -> bool:
    """Tell whether a setting's option may stand without a value, and as --no-name."""
    return name in Settings.model_fields and Settings.model_fields[name].annotation is bool


def read_command_line(arguments: Sequence[str]) -> Reading:
    """Read the arguments, without the program's name. Where an option is repeated, the last one counts."""
    reading = Reading()
    options = {option_name(name): name for name in (*Settings.model_fields, CONFIG)}
    negations = {f"--no-{option[2:]}": name for option, name in options.items() if is_boolean(name)}
    rest = deque(arguments)
    while rest:
        option, equals, text = rest.popleft().partition("=")
        value = text if equals else None
        # An unknown option takes its value along. No value begins with --: that one must be --name=--value.
        if not equals and option.startswith("--") and option not in negations and rest and rest[0][:2] != "--":
            value = rest.popleft()

        name, source = options.get(option), Source(option, _PLACE)
        if name is not None and value is not None:
            reading.given[name] = Given(value, source)
        elif name is not None and is_boolean(name):
            reading.given[name] = Given("1", source)
        elif name is not None:
            reading.mistakes.append(f"{option}: its value is missing ({_PLACE})")
        elif option in negations and value is None:
            reading.given[negations[option]] = Given("0", source)
        elif option in negations:
            reading.mistakes.append(f"{option}: it takes no value ({_PLACE})")
        elif re.fullmatch(r"--[\w-]+|-\w", option):
            reading.mistakes.append(unknown(source, [*options, *negations]))
        else:
            reading.mistakes.append(f"an argument without an option: a --name goes before each value ({_PLACE})")
    return reading
