"""The error that a user can act on."""


class UserError(ValueError):
    """Wrong settings or unusable files. Scripts show only its message; any other exception shows its traceback."""
