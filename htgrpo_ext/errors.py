"""The exceptions that are meant for the user."""


class UserError(Exception):
    """A mistake the user can correct: one line that says what is wrong, where, and what to do. Exit code 2."""


class Stopped(Exception):
    """A signal asked the command to stop, and it did: one line. Exit code 128 + `signum`."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def one_line(text: object, most: int = 200) -> str:
    """A text of unknown origin for an error message: one line of at most `most` characters.

    What cannot be printed is escaped; only in the words of an exception, spaces and line ends become one space.
    """
    start = str(text)[: 50 * most]
    line = " ".join(start.split()) if isinstance(text, BaseException) else start
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
    return line if len(line) <= most else f"{line[: most - 2]}.."
