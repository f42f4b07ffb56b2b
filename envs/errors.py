"""What a user can get wrong about games, protocols and datasets."""


class EnvsError(Exception):
    """A user's mistake; its text is one line, fit to print."""
