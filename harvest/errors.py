"""What the harvest raises when the request, not the program, is at fault."""


class HarvestError(ValueError):
    """One line: what was wanted, what came, what to do. The command line prints it and exits with code 2."""


class PeerStopped(HarvestError):
    """Another process of this harvest stopped, and says why."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign error, so that our one line stays one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
