"""The one error that a user of a cache meets: what was wanted, what came, what to do."""


class CacheError(ValueError):
    """A cache that cannot be used as asked; the message is one line and names the remedy.

    Raised for every damaged, incomplete, contradictory or foreign input, and for requests a cache cannot meet.
    A programmer's mistake (a wrong type in a call) is a `TypeError` or `IndexError` as anywhere else.
    """
