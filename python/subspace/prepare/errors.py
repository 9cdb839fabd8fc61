"""The one exception of this package."""


class DataError(Exception):
    """What was wrong, where, what was found, what was expected and what to do, in one line."""
