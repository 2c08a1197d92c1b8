"""A store with users of different kinds, and a server over it, for the tests of `oppu.serve`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
import uvicorn
from openai import OpenAI

from oppu.examples import PLAIN, Setting
from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.kinds import LoraConfig
from oppu.model.module import Module
from oppu.records import HistoryItem
from oppu.serve.app import create_app, listen
from oppu.serve.asking import Asker
from oppu.serve.engine import Engine, EngineConfig
from oppu.store import ModuleRecord, Store
from oppu.tasks import HistoryForm, Task

MOOD = Task(
    name="mood",
    title="toy",
    kind="label",
    labels=("sad", "glad", "so so"),
    prompt="note: {text} mood:",
    history=(
        HistoryForm(prompt="note: {text} mood:", answer="{mood}", shown="note: {text} mood: {mood}"),
        HistoryForm(prompt="", answer="{text}", shown="note: {text}"),
    ),
    search_fields=("text",),
)
TITLE = Task(
    name="title",
    title="toy",
    kind="text",
    no_repeat_ngram=2,
    prompt="note: {text} title:",
    history=(HistoryForm(prompt="", answer="{text}", shown="note: {text}"),),
    search_fields=("text",),
    max_answer_tokens=12,
)
PAIR = MOOD.model_copy(update={"name": "pair", "prompt": "{left} or {right}?"})
HISTORY = (
    HistoryItem("h1", {"text": "the train was late", "mood": "sad"}, 1.0),
    HistoryItem("h2", {"text": "the cake was good", "mood": "glad"}, 2.0),
    HistoryItem("h3", {"text": "nothing to tell today", "mood": "so so"}, 3.0),
    HistoryItem("h4", {"text": "rain all over again", "mood": "sad"}, 4.0),
    HistoryItem("h5", {"text": "a friend came by", "mood": "glad"}, 5.0),
)
RAG = Setting(k=1)


def random_module(base: Base, seed: int, rank: int = 4) -> Module:
    """A module with non-zero b, so that it changes the answers."""
    bank = Bank(base.model, LoraConfig(rank=rank, alpha=8), 1)
    bank.values.copy_(torch.randn(bank.values.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return bank.module(0)


def put_user(
    store: Store, base: Base, user: str, task: Task, seed: int, setting: Setting = PLAIN, rank: int = 4
) -> ModuleRecord:
    """A user with a history and a random module."""
    store.put_history(user, task.name, HISTORY)
    return store.put_module(
        random_module(base, seed, rank),
        user_id=user,
        task=task.name,
        setting=setting.name,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        training={"setting": asdict(setting)},
    )


@contextmanager
def running_server(
    store: Store, base: Base, config: EngineConfig | None = None, api_key: str | None = None
) -> Iterator[tuple[OpenAI, Engine]]:
    """A server in a thread, its client and its engine."""
    engine = Engine(base, store.load_module, config)
    app = create_app(engine, Asker(store, base, [MOOD, TITLE, PAIR]), api_key=api_key)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        try:
            with OpenAI(base_url=url, api_key=api_key or "none", max_retries=0, timeout=60) as client:
                yield client, engine
        finally:
            server.should_exit = True
            thread.join()


def wait_until(condition: object, timeout_s: float = 20) -> None:
    """Poll until `condition()` is true."""
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
