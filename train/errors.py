"""The errors that a user of `train` can cause."""


class TrainError(ValueError):
    """A request that training cannot meet; the message says what was wanted, what came and what to do."""


class PeerStopped(TrainError):
    """Another process stopped, and says why; this one stops with it."""
