"""The one exception for what a user can mend: bad files, bad values, bad settings."""

from typing import NoReturn

MAX_MESSAGE = 2000  # characters; a longer message loses its middle


class InputError(ValueError):
    """A wrong file, value or setting. The message is one line: the value, and what is allowed.

    `jaxneg.main` prints it on stderr and exits with code 2; nothing half-written is left behind. Line breaks and
    control characters of a value are shown as escapes, so that no file name and no file's content breaks the line.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def refuse(message: str) -> NoReturn:
    """Raises InputError; as `error` of an argparse parser, it makes a wrong command line one line, too."""
    raise InputError(message)


def _one_line(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) <= MAX_MESSAGE:
        return shown
    half = MAX_MESSAGE // 2 - 10
    return f"{shown[:half]} [...] {shown[-half:]}"
