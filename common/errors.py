"""The one error class for a user's mistake."""


class UserError(Exception):
    """A user's mistake. Its text is one line, fit to print: what was expected, what came, the nearest valid choice."""
