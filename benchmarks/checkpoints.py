"""What it costs to keep users' trainings under way: seconds of a round of checkpoints, and its share of a minute.

    python benchmarks/checkpoints.py --place /where/stores/are

Modules of random numbers, as large as those of the embedded base's recipe; a store in a folder. Each round replaces the
last one's checkpoints, as every minute in training.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from oppu.model.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from oppu.personalize import KEPT_TOGETHER
from oppu.store import NewCheckpoint, Store
from oppu.train import Machine

KEY = ("toy", "plain", "f")
"""Task, setting and base."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1,20,64", help="users under way at a time")
    parser.add_argument("--parameters", type=int, default=460_800, help="of a module; default: the embedded base's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, help="where a folder for the store is made; default: the system's")
    return parser.parse_args()


def main() -> None:
    wanted = arguments()
    for users in (int(text) for text in wanted.users.split(",")):
        with tempfile.TemporaryDirectory(dir=wanted.place) as place, Store(Path(place)) as store:
            store.put_histories(KEY[0], {f"u{user}": () for user in range(users)})
            made = torch.randn(users, 3, wanted.parameters)
            rounds = sorted(keep(store, made) for _ in range(wanted.rounds))
            wall, cpu = rounds[len(rounds) // 2]
            began = time.perf_counter()
            data = store.checkpoint("u0", *KEY, "p")
            assert data is not None
            read_checkpoint(data, "p")
            share = wall / Machine().checkpoint_s
            print(
                f"{users} users, {len(data) / 1e6:.2f} MB each: {wall:.2f} s, {cpu:.2f} s of them computing; "
                f"{share:.1%} of the time between; one is read in {time.perf_counter() - began:.3f} s"
            )


def keep(store: Store, made: torch.Tensor) -> tuple[float, float]:
    """Seconds by the clock and of the processor for one round."""
    began, computed = time.perf_counter(), time.process_time()
    for first in range(0, len(made), KEPT_TOGETHER):
        new = []
        for user in range(first, min(first + KEPT_TOGETHER, len(made))):
            values, *moments = (line.to("cpu", copy=True) for line in made[user])
            stream = torch.Generator().get_state()
            checkpoint = Checkpoint(100, values, (moments[0], moments[1]), stream, (0.5,) * 100)
            new.append(NewCheckpoint(f"u{user}", *KEY, "p", checkpoint_bytes(checkpoint, "p")))
        store.put_checkpoints(new)
    return time.perf_counter() - began, time.process_time() - computed


if __name__ == "__main__":
    main()
