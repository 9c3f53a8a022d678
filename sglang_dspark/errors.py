"""The one exception for bad input: a single sentence that names the value and what was expected."""


class InputError(ValueError):
    """Bad input from a user: a flag, a file or a parameter. Command lines print it and exit with status 2."""
