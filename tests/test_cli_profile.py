"""`oppu profile` from the command line, and its profiles in the commands that show them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from serve_house import running_server
from shell import SMALL, World, done, oppu, refused, write_task
from toys import COLOUR, colour_user, write_release
from writers import ASKED, chatting_base

from oppu.model.base import save_base
from oppu.store import Store
from oppu.tasks import task_from_toml


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """The world's task with words for a profile."""
    return write_task(tmp_path / "asked.toml", ASKED)


def test_a_task_file_keeps_what_is_counted(asked: Path) -> None:
    assert task_from_toml(asked) == ASKED


def test_counted_profiles_go_from_histories_into_every_command(world: World, asked: Path, tmp_path: Path) -> None:
    place = ("--task", asked, "--data", world.data, "--store", world.store)
    assert done("profile", *place) == f"2 made; profiles by count in {world.store}\n"
    assert done("profile", *place) == f"2 kept; profiles by count in {world.store}\n"
    assert done("profile", *place, "--held-out") == f"2 kept, 1 made; profiles by count in {world.store}\n"
    shown = (*place, "--base", world.base, "--profiles", "store")
    assert done("personalize", *shown, *SMALL) == f"2 trained; modules in {world.store}\n"
    assert done("personalize", *shown, *SMALL) == f"2 kept; modules in {world.store}\n"
    assert json.loads(done("modules", "show", "--store", world.store, "--user", "ann"))["setting"] == "profile"
    done("predict", *shown, "--out", tmp_path / "a.json")
    answers = {gold["id"]: gold["output"] for gold in json.loads((tmp_path / "a.json").read_text())["golds"]}
    said = done("ask", "--store", world.store, "--user", "ann", "--profiles", "store", "ann new 0").strip()
    assert said == answers["ann-q0"]
    assert "give it, or `--profiles store`" in refused("ask", "--store", world.store, "--user", "ann", "car")
    done("adapt", *shown, "--name", "told", *SMALL)
    said = done("modules", "delete", "--store", world.store, "--user", "ann", "--yes")
    assert "1 profiles, 4 history items" in said
    with Store(world.store) as store:
        assert [record.user_id for record in store.profiles("colour")] == ["bob", "x"]


def test_a_history_that_was_rewritten_asks_for_its_profiles_again(world: World, asked: Path, tmp_path: Path) -> None:
    place = ("--task", asked, "--store", world.store)
    done("profile", *place, "--data", world.data)
    other = write_release(tmp_path / "other", [colour_user("ann", 2), colour_user("bob", 2)])
    said = refused("personalize", *place, "--data", other, "--base", world.base, "--profiles", "store", *SMALL)
    assert said.startswith(f"{world.store}: the profile of user 'ann' was made from another history; run `oppu")
    assert done("profile", *place, "--data", other) == f"1 kept, 1 made; profiles by count in {world.store}\n"
    done("personalize", *place, "--data", other, "--base", world.base, "--profiles", "store", *SMALL)


def test_users_without_a_profile_are_named_and_trained_without_one(world: World, asked: Path) -> None:
    place = ("--task", asked, "--data", world.data, "--store", world.store)
    assert done("profile", *place, "--users", "1").startswith("1 made; ")
    ran = oppu("personalize", *place, "--base", world.base, "--profiles", "store", *SMALL)
    assert ran.out.startswith("2 trained; ")
    assert "without a profile, and trained on prompts without one: 1 users (bob)" in " ".join(ran.err.split())


def test_a_base_writes_profiles_and_a_server_does(world: World, asked: Path, tmp_path: Path) -> None:
    base = chatting_base()
    save_base(base, tmp_path / "chatting")
    place = ("--task", asked, "--data", world.data, "--store", world.store, "--tokens", "12")
    made = done("profile", *place, "--base", tmp_path / "chatting", "--steps", "2")
    assert made == f"2 made; profiles by model:{tmp_path / 'chatting'} in {world.store}\n"
    with Store(world.store) as store, running_server(store, base) as (client, _):
        options = ("--url", str(client.base_url), "--model", "tiny", "--steps", "2", "--context", "512")
        assert done("profile", *place, *options) == f"2 made; profiles by api:tiny in {world.store}\n"
        there, here = store.ways_of_profiles("colour")
        assert (there, here) == ("api:tiny", f"model:{tmp_path / 'chatting'}")
        told = [[record.profiles for record in store.profiles("colour", way)] for way in (here, there)]
    assert told[0] == told[1]


def test_an_experiment_compares_methods_with_profiles(
    world: World, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oppu.evaluate.experiment.write_report", lambda out, *_: out)
    done("profile", "--task", asked, "--data", world.data, "--store", world.store, "--held-out")
    options = ("--task", asked, "--data", world.data, "--base", world.base, "--out", tmp_path / "out", *SMALL)
    small = ("--adapt-epochs", "1", "--methods", "pag,oppu+pag,oppu+pag+rag")
    assert refused("experiment", *options, *small).startswith("--methods: pag shows profiles, and there are none; give")
    assert "add --store" in refused("experiment", *options, *small, "--profiles", "store")
    done("experiment", *options, *small, "--profiles", "store", "--store", world.store)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["method"], row["k"]) for row in rows][-3:] == [("pag", 0), ("oppu+pag", 0), ("oppu+pag+rag", 1)]


def test_held_out_users_who_share_an_item_with_a_test_user_keep_their_profiles(
    world: World, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oppu.evaluate.experiment.write_report", lambda out, *_: out)
    users = [colour_user("ann", 4), colour_user("bob", 2)]
    held_out = [colour_user(name, 3) for name in "xyz"]
    first, *rest = held_out[0].history
    held_out[0] = replace(held_out[0], history=(replace(first, fields=first.fields | {"text": "ann new 0"}), *rest))
    data = write_release(tmp_path / "shared", users, held_out)
    done("profile", "--task", asked, "--data", data, "--store", world.store, "--held-out")
    shown = ("--task", asked, "--data", data, "--store", world.store, "--base", world.base, "--profiles", "store")
    done("adapt", *shown, "--name", "told", *SMALL)
    short = ("--adapt-epochs", "1", "--methods", "pag", "--develop", "1", "--out", tmp_path / "out")
    done("experiment", *shown, *short, *SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--by", "hand"), "--by: 'hand' is no way to make a profile; use count or model"),
        (("--by", "count", "--base", "x"), "--base: counting needs no model; leave out --base, or use --by model"),
        (("--url", "http://h/v1", "--base", "x"), "--url: one model writes the profiles, not two"),
        (("--url", "http://h/v1"), "--url: --url and --model belong together; give both"),
        (("--model", "big"), "--model: --url and --model belong together; give both"),
        (("--steps", "2"), "--steps: profiles are counted, not written by a model; leave out --steps, or add --by"),
        (("--by", "count", "--quantize", "8bit"), "--quantize: profiles are counted, not written by a model"),
        (("--url", "h", "--model", "big"), "--url: no http:// or https:// address; use http://HOST/v1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    world: World, asked: Path, options: tuple[str, ...], words: str
) -> None:
    said = refused("profile", "--task", asked, "--data", world.data, "--store", world.store, *options)
    assert said.startswith(words)


def test_a_task_without_words_for_a_profile_is_refused_before_anything_is_made(world: World, tmp_path: Path) -> None:
    place = ("--data", world.data, "--store", tmp_path / "new")
    assert "task colour has no profile_prompt" in refused("profile", "--task", world.task, *place)
    assert "task colour has no profile_count" in refused("profile", "--task", world.task, *place, "--by", "count")
    assert not (tmp_path / "new").exists()
    assert COLOUR.profile_prompt == ""


def test_profiles_that_nobody_made_are_asked_for(world: World, asked: Path, tmp_path: Path) -> None:
    options = ("--task", asked, "--data", world.data, "--store", world.store, "--base", world.base)
    said = f"{world.store}: there are no profiles of task colour; run `oppu profile` first"
    assert refused("personalize", *options, "--profiles", "store") == said
    assert refused("predict", *options, "--profiles", "store", "--out", tmp_path / "a.json") == said


def test_a_user_who_is_refused_is_named_word_by_word_and_the_exit_code_says_so(world: World, asked: Path) -> None:
    place = ("--task", asked, "--data", world.data, "--store", world.store)
    with Store(world.store) as store, running_server(store, chatting_base()) as (client, _):
        url = ("--url", str(client.base_url), "--model", "tiny", "--steps", "1")
        ran = oppu("profile", *place, *url, "--tokens", "400", "--context", "10000")  # too long for ann's four items
        assert ran.code == 1
        assert ran.out.startswith("1 failed, 1 made; profiles by api:tiny in ")
        assert "user ann: http://127.0.0.1:" in ran.err
        assert "the server answered 400 Bad Request (the prompt has" in " ".join(ran.err.split())
    few = refused("profile", *place, "--url", "http://127.0.0.1:9/v1", "--model", "x", "--context", "64")
    assert few.startswith("api:x: a request and its answer leave 0 of the model's 64 tokens for the history, and 322")
