"""The one exception for bad input: a single sentence that names the value and what was expected."""


class InputError(ValueError):
    """Bad input from a user: a flag, a file or a parameter. Command lines print it and exit with status 2.

    Whatever the sentence quotes, it stays one printable line.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(printable(str(sentence)))


def printable(text: str) -> str:
    """`text` on one line: control characters, which could forge lines of a log or steer a terminal, become spaces."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
