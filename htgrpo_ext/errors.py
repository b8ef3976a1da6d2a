"""The exceptions that are meant for the user."""


class UserError(Exception):
    """A mistake the user can correct: one line that says what is wrong, where, and what to do. Exit code 2."""


class Stopped(Exception):
    """A signal asked the command to stop, and it did: one line. Exit code 128 + `signum`."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum
