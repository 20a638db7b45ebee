"""The one exception for what a user can mend: bad files, bad values, bad settings."""


class InputError(ValueError):
    """A wrong file, value or setting. The message is one line: the value, and what is allowed.

    `jaxneg.main` prints it on stderr and exits with code 2; nothing half-written is left behind.
    """
