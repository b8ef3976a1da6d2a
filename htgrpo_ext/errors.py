"""The one exception that is meant for the user, and text that is safe to print in its line."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong, where, and what to do. Exit code 2."""


def one_line(text: str, limit: int = 300) -> str:
    """The text without line ends and control characters, which are escaped, and cut to `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}.."
