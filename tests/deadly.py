"""Profiles that end the worker that looks a user up. Workers import it, so it knows no test framework."""

import os
import signal
from pathlib import Path
from typing import Any

from oppu.errors import StoreError


class DeadlyProfiles(dict[str, str]):
    """Whoever asks for the profile of a user called `poison` is killed with -9."""

    def get(self, user_id: str, default: Any = None) -> Any:
        if user_id == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().get(user_id, default)


class ProfilesOfAStoreThatIsAway(dict[str, str]):
    """The first so many look-ups, by whatever worker, end as if the store could not be reached."""

    def __init__(self, counter: Path, times: int) -> None:
        super().__init__(nobody="")
        self._counter = counter
        self._times = times

    def __reduce__(self) -> Any:
        return type(self), (self._counter, self._times)

    def get(self, user_id: str, default: Any = None) -> Any:
        with self._counter.open("a") as file:
            file.write("+")
        if self._counter.stat().st_size <= self._times:
            raise StoreError("cannot be reached", where="postgresql://db", fix="check that the server runs")
        return super().get(user_id, default)
