"""The terminal, where users' ids and texts stand as they are: brackets in them are no markup, colons no emoji."""

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """For tables and sentences."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
