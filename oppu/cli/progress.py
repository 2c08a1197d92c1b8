"""One line that says what is under way: users done, tokens per second, time left; and what became of everybody."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from oppu.cli.terminal import console


class Meter:
    """A bar for the stage under way; a new stage's name begins a new bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = ""
        self._started = 0.0

    def show(self, stage: str, done: int, total: int, tokens: int = 0) -> None:
        """Where the stage stands; `tokens` since its start."""
        if stage != self._stage:
            self._stage, self._started = stage, time.perf_counter()
            self._bar = self._progress.add_task(stage, total=total, speed="")
        seconds = time.perf_counter() - self._started
        speed = f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds > 1 else ""
        self._progress.update(self._bar, completed=done, total=total, speed=speed)

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._progress.console.print(line)


@contextmanager
def meter() -> Iterator[Meter]:
    """A meter on standard error, which stays as it was at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        yield Meter(progress)


class Tally:
    """What becomes of users, one after another: shown on a meter as they come, and summed up in the end."""

    def __init__(self, meter: Meter, stage: str, total: int) -> None:
        self._meter = meter
        self._stage = stage
        self._total = total
        self._counts: Counter[str] = Counter()
        self._tokens = 0

    def work(self, tokens: int) -> None:
        """So many more tokens were computed."""
        self._tokens += tokens
        self._show()

    def add(self, status: str, said: str = "") -> None:
        """One more user, with this status; `said`: a line about it."""
        self._counts[status] += 1
        self._show()
        if said:
            self._meter.say(said)

    def close(self, where: str) -> None:
        """Prints how many there are of each status, and where what was made lies; exit code 1 where somebody failed."""
        typer.echo(", ".join(f"{count} {status}" for status, count in sorted(self._counts.items())) + f"; {where}")
        if self._counts["failed"]:
            raise typer.Exit(1)

    def _show(self) -> None:
        self._meter.show(self._stage, self._counts.total(), self._total, self._tokens)
