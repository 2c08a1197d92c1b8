"""Every error that oppu raises on purpose: what is wrong, where, and what to do.

The command line prints one as a line and exits with 2; the server answers in OpenAI's error shape.
"""

from collections.abc import Sequence


class OppuError(Exception):
    """What went wrong, where it was found, and what the reader can do about it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(self.line())

    def line(self) -> str:
        """The whole error in one line: `where: what; fix`."""
        return (f"{self.where}: " if self.where else "") + self.what + (f"; {self.fix}" if self.fix else "")


class ConfigError(OppuError):
    """A setting, option or task file that cannot be used."""


class DataError(OppuError):
    """Bad input data. Carries every problem of the input, not the first alone."""

    def __init__(self, problems: Sequence[str], *, where: str = "", fix: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        what = self.problems[0] if count == 1 else f"{count} problems:\n  " + "\n  ".join(self.problems)
        super().__init__(what, where=where, fix=fix)


class ModelError(OppuError):
    """A base model that cannot be loaded, or a shape that a base does not support."""


class StoreError(OppuError):
    """The store cannot be read or written, or what lies in it cannot be trusted."""


class UnknownUserError(OppuError):
    """A user of whom nothing is known."""
