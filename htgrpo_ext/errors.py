"""The one exception that is meant for the user."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong, where, and what to do. Exit code 2."""
