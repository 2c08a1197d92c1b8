"""The server through the official OpenAI client: each user's own answers, in OpenAI's words."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from conftest import tiny_model, tiny_tokenizer
from openai import OpenAI
from serve_house import HISTORY, MOOD, RAG, TITLE, put_user, random_module, running_server, wait_until

from oppu.describe.stored import profiles_from
from oppu.describe.users import describe
from oppu.errors import ConfigError
from oppu.examples import HistoryIndex, Setting, query_example
from oppu.model.bank import Bank
from oppu.model.base import Base, make_base
from oppu.model.decode import Decoder, Prompt
from oppu.model.kinds import LoraConfig
from oppu.predict import Question, generate, score_labels
from oppu.records import Query, User
from oppu.serve.asking import Asker
from oppu.serve.engine import Choice, Engine, EngineConfig
from oppu.serve.schema import CompletionRequest
from oppu.store import Store

USERS = {"ann": 1, "bob": 2, "cy/d e": 3}
QUESTION = "what now, my dear?"


@pytest.fixture
def store(base: Base, tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        for user, seed in USERS.items():
            put_user(store, base, user, TITLE, seed)
        put_user(store, base, "rag", MOOD, 4, RAG)
        put_user(store, base, "rag", TITLE, 5, RAG)
        store.put_history("new", MOOD.name, HISTORY)
        yield store


@pytest.fixture
def served(store: Store, base: Base) -> Iterator[tuple[OpenAI, Engine]]:
    with running_server(store, base) as served:
        yield served


@pytest.fixture
def client(served: tuple[OpenAI, Engine]) -> OpenAI:
    return served[0]


@contextmanager
def base_with(seed: int | None) -> Iterator[Base]:
    """A base of its own, with one module in slot 0, for references."""
    base = make_base("tiny", tiny_model(), tiny_tokenizer())
    bank = Bank(base.model, LoraConfig(rank=4, alpha=8), 1)
    if seed is not None:
        bank.load(0, random_module(base, seed))
    with bank.attach():
        yield base


def written_alone(seed: int | None, prompt: str, limit: int) -> str:
    """The reference: greedy decoding of one sequence with one module in a bank of its own."""
    tokens: list[int] = []
    with base_with(seed) as base:
        decoder = Decoder(base.model)
        prompt_tokens = tuple(base.tokenizer(prompt).input_ids)
        logits = decoder.admit([Prompt(0, -1 if seed is None else 0, prompt_tokens)])
        while len(tokens) < limit and (not tokens or tokens[-1] != 2):
            if tokens:
                logits = decoder.step(tokens[-1:])
            tokens.append(int(logits.argmax()))
    return str(base.tokenizer.decode(tokens, skip_special_tokens=True))


def test_the_base_and_every_user_are_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["tiny", "user:ann", "user:bob", "user:cy/d e", "user:new", "user:rag"]
    assert client.models.retrieve("user:ann").id == "user:ann"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("user:nobody")


@pytest.mark.parametrize(("model", "seed"), [("tiny", None), *((f"user:{u}", seed) for u, seed in USERS.items())])
def test_a_completion_is_what_the_users_own_module_writes(client: OpenAI, model: str, seed: int | None) -> None:
    answer = client.completions.create(model=model, prompt=QUESTION, max_tokens=10)
    assert answer.choices[0].text == written_alone(seed, QUESTION, 10)
    assert answer.object == "text_completion"
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(QUESTION)
    assert answer.usage.completion_tokens == 10
    assert answer.choices[0].finish_reason == "length"


def test_users_get_different_answers(client: OpenAI) -> None:
    asked = [client.completions.create(model=f"user:{user}", prompt=QUESTION, max_tokens=10) for user in USERS]
    assert len({answer.choices[0].text for answer in asked}) == len(USERS)


def test_a_streamed_completion_has_the_same_text(client: OpenAI) -> None:
    whole = client.completions.create(model="user:ann", prompt=QUESTION, max_tokens=10)
    chunks = list(
        client.completions.create(
            model="user:ann", prompt=QUESTION, max_tokens=10, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "length"]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_without_a_template_is_a_dialogue_in_plain_text(client: OpenAI) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    answer = client.chat.completions.create(model="user:bob", messages=messages, max_completion_tokens=8)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == written_alone(2, "system: be kind\nuser: hi\nassistant:", 8)
    assert answer.choices[0].message.role == "assistant"
    chunks = list(
        client.chat.completions.create(model="user:bob", messages=messages, max_completion_tokens=8, stream=True)  # type: ignore[arg-type]
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_chat_follows_the_tokenizers_template(base: Base, client: OpenAI) -> None:
    base.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == written_alone(None, "<system>x<user>hi<a>", 8)


def test_stop_strings_end_an_answer_also_where_tokens_part_them(client: OpenAI) -> None:
    whole = client.completions.create(model="user:ann", prompt=QUESTION, max_tokens=12).choices[0].text
    stop = whole[4:7]
    for stream in (False, True):
        answer = client.completions.create(model="user:ann", prompt=QUESTION, max_tokens=12, stop=[stop], stream=stream)
        parts = list(answer) if stream else [answer]
        assert "".join(part.choices[0].text for part in parts) == whole.split(stop)[0]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_a_seed_makes_a_drawn_answer_repeatable(client: OpenAI) -> None:
    def draw(seed: int, temperature: float = 1.5) -> str:
        answer = client.completions.create(
            model="user:ann", prompt=QUESTION, max_tokens=12, temperature=temperature, top_p=0.95, seed=seed
        )
        return answer.choices[0].text

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1, temperature=0) == draw(2, temperature=0)


def test_requests_of_different_users_share_a_batch(served: tuple[OpenAI, Engine]) -> None:
    client, engine = served
    users = [*USERS, None] * 2
    barrier = threading.Barrier(len(users))

    def ask(user: str | None) -> str:
        barrier.wait()
        model = "tiny" if user is None else f"user:{user}"
        return client.completions.create(model=model, prompt=f"{QUESTION} {user}", max_tokens=40).choices[0].text

    with ThreadPoolExecutor(len(users)) as pool:
        answers = list(pool.map(ask, users))
    for user, answer in zip(users, answers, strict=True):
        assert answer == written_alone(USERS[user] if user is not None else None, f"{QUESTION} {user}", 40)
    assert engine.statistics.max_active > 1
    assert engine.statistics.answered == len(users)


def test_a_task_question_is_answered_by_a_label_and_shows_retrieved_history(
    client: OpenAI, base: Base, store: Store
) -> None:
    text = "my cake is good"
    answer = client.chat.completions.create(
        model="user:rag", messages=[{"role": "user", "content": text}], extra_body={"task": "mood"}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["oppu"]["retrieved"] == ["h2"]
    assert answer.model_extra["oppu"]["module"] == {"task": "mood", "setting": "bm25-k1", "version": 1}
    example = query_example(HistoryIndex(MOOD, HISTORY, RAG), "rag", Query("q", text, {"text": text}))
    assert "the cake was good" in example.prompt
    with base_with(4) as alone:
        scores = score_labels(alone, MOOD, [Question(0, example)], base.max_tokens)
    assert answer.choices[0].message.content == MOOD.labels[int(scores.argmax())]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(example.prompt)


def test_a_text_task_writes_what_predict_writes(client: OpenAI, base: Base) -> None:
    answer = client.completions.create(model="user:rag", prompt="my cake", max_tokens=9, extra_body={"task": "title"})
    task = TITLE.model_copy(update={"max_answer_tokens": 9})
    example = query_example(HistoryIndex(task, HISTORY, RAG), "rag", Query("q", "my cake", {"text": "my cake"}))
    with base_with(5) as alone:
        (expected,) = generate(alone, task, [Question(0, example)], max_tokens=base.max_tokens)
    assert answer.choices[0].text == expected


def test_a_changed_history_is_seen_at_once(client: OpenAI, store: Store) -> None:
    def retrieved() -> list[str]:
        answer = client.completions.create(model="user:rag", prompt="late train", extra_body={"task": "mood"})
        assert answer.model_extra is not None
        return list(answer.model_extra["oppu"]["retrieved"])

    assert retrieved() == ["h1"]
    store.put_history("rag", "mood", HISTORY[1:])
    assert retrieved() == ["h5"]


def test_a_new_module_answers_at_once(client: OpenAI, base: Base, store: Store) -> None:
    put_user(store, base, "ann", TITLE, 9)
    answer = client.completions.create(model="user:ann", prompt=QUESTION, max_tokens=10)
    assert answer.choices[0].text == written_alone(9, QUESTION, 10)


def test_a_user_without_a_module_is_answered_by_the_base_which_is_said(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="user:new", prompt=QUESTION, max_tokens=10)
    assert raw.headers["x-oppu-module"] == "none"
    answer = raw.parse()
    assert answer.choices[0].text == written_alone(None, QUESTION, 10)
    assert answer.model_extra is not None
    assert answer.model_extra["oppu"]["module"] is None
    own = client.completions.with_raw_response.create(model="user:ann", prompt=QUESTION, max_tokens=1)
    assert own.headers["x-oppu-module"] == "title/plain/v1"


def test_modules_of_another_rank_are_served_too(client: OpenAI, base: Base, store: Store) -> None:
    before = client.completions.create(model="user:ann", prompt=QUESTION, max_tokens=6)
    put_user(store, base, "thin", TITLE, 7, rank=2)
    thin = client.completions.create(model="user:thin", prompt=QUESTION, max_tokens=6)
    assert thin.choices[0].text != before.choices[0].text
    assert client.completions.create(model="user:ann", prompt=QUESTION, max_tokens=6).choices == before.choices


@pytest.mark.parametrize("model", ["user:nobody", "user:", "gpt-4", "user:\x00", "../ann"])
def test_an_unknown_model_is_a_404_in_openais_shape(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model=model, prompt=QUESTION)
    assert isinstance(found.value.body, dict)
    assert found.value.body.keys() == {"message", "type", "param", "code"}
    assert found.value.code == "model_not_found"
    assert found.value.response.json().keys() == {"error"}


def test_a_deleted_user_is_unknown_at_once(client: OpenAI, store: Store) -> None:
    client.completions.create(model="user:bob", prompt=QUESTION, max_tokens=2)
    store.delete_user("bob")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="user:bob", prompt=QUESTION, max_tokens=2)
    assert "user:bob" not in [model.id for model in client.models.list()]


def test_a_deleted_users_history_and_module_leave_the_servers_memory(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    askers: list[Asker] = []

    def asker(*given: object) -> Asker:
        askers.append(Asker(*given))
        return askers[-1]

    def kept() -> set[str]:
        return {user for user, _, _ in askers[0]._indexes}

    monkeypatch.setattr("serve_house.Asker", asker)
    monkeypatch.setattr("oppu.serve.app.FORGET_S", 0.01)
    with running_server(store, base) as (client, engine):
        for user in ("rag", "ann"):
            client.completions.create(model=f"user:{user}", prompt="late train", extra_body={"task": "title"})
        bank = engine._slots._bank
        assert bank is not None
        assert kept() == {"rag", "ann"}
        assert bank.values[:3].count_nonzero(1).tolist() == [bank.size, bank.size, 0]
        store.delete_user("rag")
        wait_until(lambda: kept() == {"ann"})
        wait_until(lambda: [record.user_id for record in engine.modules] == ["ann"])
        assert bank.values[:3].count_nonzero(1).tolist() == [0, bank.size, 0]
        client.completions.create(model="user:ann", prompt="late train", extra_body={"task": "title"})


def test_a_large_limit_leaves_the_prompt_of_a_task_as_it_is(client: OpenAI) -> None:
    def asked(limit: int | None) -> tuple[int, str]:
        more = {} if limit is None else {"max_tokens": limit}
        answer = client.completions.create(model="user:rag", prompt="late train", extra_body={"task": "title"}, **more)
        assert answer.usage is not None
        return answer.usage.prompt_tokens, answer.choices[0].text

    usual = asked(None)
    assert usual[0] > 20
    assert asked(5000)[0] == usual[0]
    assert asked(4)[0] == usual[0]


def test_what_is_kept_of_one_task_goes_with_it(store: Store, base: Base) -> None:
    store.put_history("ann", "mood", HISTORY)
    asker = Asker(store, base, [MOOD, TITLE])
    for task in ("mood", "title"):
        asker.completion(CompletionRequest(model="user:ann", prompt="late train", task=task))
    assert {task for _, task, _ in asker._indexes} == {"mood", "title"}
    store.delete_user("ann", "title")
    asker.forget_deleted()
    assert {task for _, task, _ in asker._indexes} == {"mood"}


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"n": 2}, "n: is not supported"),
        ({"logprobs": 3}, "logprobs: is not supported"),
        ({"echo": True}, "echo: is not supported"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "more than the model's 512"),
        ({"prompt": "x" * 513}, "513 tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a"] * 5}, "at most 4"),
        ({"stop": [""]}, "empty string"),
        ({"task": "poetry"}, "unknown task 'poetry'"),
        ({"task": "pair"}, "left, right"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_honoured_is_a_400_that_says_why(client: OpenAI, extra: dict[str, object], told: str) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="user:new", prompt=QUESTION, extra_body=extra)
    assert isinstance(found.value.body, dict)
    assert told in found.value.body["message"]


def test_openais_neutral_values_are_taken(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=2,
        n=1,
        frequency_penalty=0.0,
        presence_penalty=0,
        logit_bias={},
        logprobs=False,
        response_format={"type": "text"},
        user="someone",
    )
    assert answer.choices[0].finish_reason == "length"


def test_other_errors_have_openais_shape_too(client: OpenAI) -> None:
    url = str(client.base_url)
    for answer, status in (
        (httpx.get(url + "nothing"), 404),
        (httpx.get(url + "completions"), 405),
        (httpx.post(url + "completions", content=b"{"), 400),
        (httpx.post(url + "completions", content=b'{"prompt": "x"}'), 400),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_module_that_was_changed_on_disk_is_refused_and_the_server_lives(client: OpenAI, store: Store) -> None:
    (record,) = store.modules("ann")
    (record.path / "adapter_config.json").write_text("{}")
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="bytes instead of") as found:
            client.completions.create(model="user:ann", prompt=QUESTION, stream=stream)
        assert str(store.folder) not in str(found.value)
    assert client.completions.create(model="user:bob", prompt=QUESTION, max_tokens=1).choices[0].text


def test_a_full_queue_is_a_429(store: Store, base: Base) -> None:
    with running_server(store, base, EngineConfig(max_waiting=0)) as (client, _), pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt=QUESTION)


def test_an_api_key_is_asked_for(store: Store, base: Base) -> None:
    with running_server(store, base, api_key="secret") as (client, _):
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").completions.create(model="tiny", prompt=QUESTION)
        assert httpx.get(str(client.base_url).removesuffix("v1/") + "health").json()["status"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(served: tuple[OpenAI, Engine], stream: bool) -> None:
    client, engine = served
    body = {"model": "user:ann", "prompt": QUESTION, "max_tokens": 480, "stream": stream}
    with httpx.Client() as impatient:
        if stream:
            with impatient.stream("POST", str(client.base_url) + "completions", json=body) as answer:
                next(answer.iter_text())
        else:
            with pytest.raises(httpx.ReadTimeout):
                impatient.post(str(client.base_url) + "completions", json=body, timeout=0.1)
    wait_until(lambda: engine.statistics.cancelled == 1)
    assert engine.active == 0
    assert engine.statistics.answered == 0


def test_a_question_shows_the_users_profile_in_the_store_as_it_is_now(base: Base, tmp_path: Path) -> None:
    counted = MOOD.model_copy(update={"profile_count": "mostly {most_common}"})
    request = CompletionRequest(model="user:ann", task="mood", prompt="a day")
    with Store(tmp_path / "store") as store:
        put_user(store, base, "ann", MOOD, 1, Setting(profile=True))
        asker = Asker(store, base, [MOOD], profiles_from("store"))

        def prompt() -> str:
            work = asker.completion(request).work
            assert isinstance(work, Choice)
            return work.example.prompt

        with pytest.raises(ConfigError, match="there are no profiles of task mood"):
            prompt()
        list(describe(store, counted, [User("ann", HISTORY)]))
        assert prompt() == "mostly glad\nnote: a day mood:"
        list(describe(store, counted.model_copy(update={"profile_count": "{most_common}!"}), [User("ann", HISTORY)]))
        assert prompt() == "glad!\nnote: a day mood:"
