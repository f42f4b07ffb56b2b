"""What a user can get wrong about models and checkpoints."""


class VlmError(Exception):
    """A user's mistake; its text is one line, fit to print."""
