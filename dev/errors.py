"""The one kind of failure that the developer who ran the command can do something about."""


class DevError(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""
