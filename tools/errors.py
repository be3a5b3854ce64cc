"""The error that a user can act on."""


class UserError(ValueError):
    """Wrong settings, or files that cannot be used: scripts show its message alone, and a traceback for any other."""
