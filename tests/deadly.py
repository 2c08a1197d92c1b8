"""Profiles that kill the process that looks a certain user up. Workers import it, so it knows no test framework."""

import os
import signal
from typing import Any


class DeadlyProfiles(dict[str, str]):
    """Whoever asks for the profile of a user called `poison` is killed with -9."""

    def get(self, user_id: str, default: Any = None) -> Any:
        if user_id == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().get(user_id, default)
