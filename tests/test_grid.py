"""All columns of Table 1, several tasks and several seeds with one command, on tiny models."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import SMALL, contents, done, refused, write_task
from toys import COLOUR, FAST, MOTTO, REMARK, colour_user, colour_users, tiny_base_folder, write_release
from writers import Parrot

from oppu.adapt import adaption_examples
from oppu.describe.default import default_profiles
from oppu.errors import ConfigError
from oppu.evaluate import experiment as module
from oppu.evaluate.columns import TABLE_1
from oppu.evaluate.design import ALL, Experiment, method
from oppu.evaluate.experiment import run
from oppu.evaluate.grid import plan_runs
from oppu.evaluate.results import read_cells
from oppu.examples import PLAIN, Setting
from oppu.profiles.timeline import Along
from oppu.records import Dataset, HistoryItem, Query, User
from oppu.store import Store
from oppu.tasks import BUILT_IN

COUNTED = COLOUR.model_copy(update={"profile_count": "most popular colour: {most_common}"})
COLUMNS = [(column.method, column.k) for column in TABLE_1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def arguments(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Of an experiment with all columns on four users."""
    place = tmp_path_factory.mktemp("world")
    data = write_release(place / "data", colour_users(6, 5, 3, 1), [colour_user("x", 4), colour_user("y", 2)])
    task = write_task(place / "colour.toml", COUNTED)
    short = [*SMALL, "--adapt-epochs", 1]
    return ["experiment", "--task", task, "--data", data, "--base", base, "--methods", "all", *short]


@pytest.fixture(scope="module")
def finished(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all columns, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "all"
    said = done(*arguments, "--out", out)
    assert "colour: no profiles are given; they are made as by `oppu profile`: count" in said
    return out


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take seconds, and one run in full shows them."""
    monkeypatch.setattr(module, "write_report", lambda out, *_: out)


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


# all columns


def test_one_command_runs_the_thirteen_columns_and_makes_the_profiles_that_they_need(finished: Path) -> None:
    found = results(finished)
    assert [(row["method"], row["k"]) for row in found["rows"] if row["method"] != "majority"] == COLUMNS
    assert len(COLUMNS) == 13
    assert all((row["users"], row["queries"]) == (4, 4) for row in found["rows"])
    config = found["config"]
    assert (config["methods"], config["profiles"], config["adapt_k"]) == (["all"], "count", None)
    with Store(finished / "store", read_only=True) as store:
        assert {(r.user_id, r.made, r.profiles[-1].text.split(":")[0]) for r in store.profiles("colour")} == {
            (user, "count", "most popular colour") for user in ("a", "b", "c", "d", "x", "y")
        }
        assert {each.name for each in store.bases()} == {
            f"colour-{name}" for name in ("plain", "bm25-k1", "bm25-k2", "bm25-k4", "profile", "bm25-k1-profile")
        }
        shown = {record.setting for record in store.modules()}
    assert shown == {"plain", "bm25-k1", "bm25-k2", "bm25-k4", "profile", "bm25-k1-profile"}


def test_a_report_of_that_run_has_no_empty_column(finished: Path, tmp_path: Path) -> None:
    done("report", finished, "--out", tmp_path / "report")
    with (tmp_path / "report" / "table1.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["method"], int(row["k"])) for row in found] == COLUMNS * 2
    assert all(row["mean"] for row in found)


def test_a_rerun_of_all_columns_computes_nothing_and_makes_no_profiles(
    finished: Path, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_base", lambda *_, **__: pytest.fail("it loaded the base"))
    monkeypatch.setattr(module, "default_profiles", lambda *_, **__: pytest.fail("it made profiles"))
    monkeypatch.setattr(module, "write_report", lambda out, *_: out)
    before = contents(finished)
    done(*arguments, "--out", finished)
    assert {n: c for n, c in contents(finished).items() if n != "results.json"} == {
        n: c for n, c in before.items() if n != "results.json"
    }
    assert results(finished)["rows"] == json.loads(before["results.json"])["rows"]


@pytest.fixture
def small(base: Path) -> tuple[Experiment, Dataset]:
    """A run of two users and two held-out ones."""
    wanted = Experiment(COUNTED, ("base",), (1,), str(base), FAST, FAST)
    return wanted, Dataset(tuple(colour_users(3, 2)), (colour_user("x", 3), colour_user("y", 2)))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Names of cells in the order in which they are computed; answers are not."""
    cells: list[tuple[str, int]] = []
    original: Callable[..., Any] = module._Bench.cell

    def cell(self: Any, name: str, k: int, users: Any) -> Any:
        cells.append((name, k))
        return original(self, name, k, users)

    monkeypatch.setattr(module._Bench, "cell", cell)
    return cells


@pytest.mark.usefixtures("no_report")
def test_a_run_takes_in_the_other_columns_and_keeps_those_that_it_has(
    small: tuple[Experiment, Dataset], tmp_path: Path, computed: list[tuple[str, int]]
) -> None:
    wanted, dataset = small
    run(replace(wanted, methods=("base", "rag"), k=(1, 4)), dataset, tmp_path)
    computed.clear()
    run(replace(wanted, methods=(ALL,)), dataset, tmp_path)
    assert computed == [column for column in COLUMNS if column not in (("base", 0), ("rag", 1), ("rag", 4))]


@pytest.mark.usefixtures("no_report")
def test_where_profiles_are_made_otherwise_or_given_the_columns_with_them_are_run_again(
    small: tuple[Experiment, Dataset], tmp_path: Path, computed: list[tuple[str, int]]
) -> None:
    wanted, dataset = small
    run(replace(wanted, methods=(ALL,), adapt=None), dataset, tmp_path)
    computed.clear()
    other = COUNTED.model_copy(update={"profile_count": "likes: {most_common}"})
    run(replace(wanted, methods=(ALL,), adapt=None, task=other), dataset, tmp_path)
    with_profiles = [(name, k) for name, k in COLUMNS if "pag" in name]
    assert computed == with_profiles
    run(replace(wanted, methods=(ALL,), adapt=None, task=other), dataset, tmp_path, profiles={"a": "likes red"})
    assert computed == with_profiles * 2


@pytest.mark.usefixtures("no_report")
def test_of_the_held_out_users_those_alone_are_described_whose_pairs_adapt_the_base(
    small: tuple[Experiment, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, dataset = small
    held_out = tuple(colour_user(f"x{n}", 3, queries=1) for n in range(12))
    with Store(tmp_path / "everybody") as store:
        everybody = default_profiles(store, COUNTED, held_out)
    assert len(everybody) == 12
    adapted: list[str] = []
    original = module.adapt_into_store

    def adapt(store: Any, base: Any, task: Any, users: Any, config: Any, *, profiles: Any, **rest: Any) -> Any:
        if config.setting.profile:
            pairs = adaption_examples(task, users, config, profiles)
            assert pairs == adaption_examples(task, users, config, everybody)
            assert any("most popular colour" in pair.prompt for pair in pairs)
            adapted.append(config.setting.name)
        return original(store, base, task, users, config, profiles=profiles, **rest)

    monkeypatch.setattr(module, "adapt_into_store", adapt)
    run(replace(wanted, methods=(ALL,), pairs=4), Dataset(dataset.users, held_out), tmp_path / "run")
    assert set(adapted) == {"profile", "bm25-k1-profile"}
    with Store(tmp_path / "run" / "store", read_only=True) as store:
        described = {record.user_id for record in store.profiles("colour")} - {"a", "b"}
    assert 0 < len(described) <= 4


def test_a_profile_that_was_made_otherwise_is_not_shown_where_a_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Parrot()
    monkeypatch.setattr("oppu.describe.default.load_base", lambda *_, **__: None)
    monkeypatch.setattr("oppu.describe.default.LocalWriter", lambda *_: writer)
    task = MOTTO.model_copy(update={"profile_prompt": "Mottos: {history} Profile:"})
    users = [motto_user("ann", 4), motto_user("bob", 4)]
    with Store(tmp_path) as store:
        assert set(default_profiles(store, task, users)) == {"ann", "bob"}
        writer.refuses = "ann 3"
        assert set(default_profiles(store, task, users, Along(2))) == {"bob"}


@pytest.mark.usefixtures("no_report")
def test_profiles_that_are_given_are_used(
    small: tuple[Experiment, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, dataset = small
    monkeypatch.setattr(module, "default_profiles", lambda *_, **__: pytest.fail("it made profiles"))
    run(replace(wanted, methods=(ALL,), adapt=None), dataset, tmp_path, profiles={"a": "likes red"})
    assert results(tmp_path)["config"]["profiles"] == "given"


def motto_user(name: str, items: int) -> User:
    history = tuple(
        HistoryItem(f"{name}{n}", {"text": f"day {n}", "motto": f"{name} {n}"}, float(n)) for n in range(items)
    )
    return User(name, history, (Query(f"{name}q", "Which motto? day: last", {"text": "last"}, gold=f"{name} x"),))


@pytest.mark.usefixtures("no_report")
def test_where_nothing_can_be_counted_the_embedded_model_is_asked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[tuple[str, int]]
) -> None:
    from oppu.model.base import load_base

    asked: list[str] = []

    def load(name: str, **_: Any) -> Any:
        asked.append(name)
        return load_base(str(base))

    monkeypatch.setattr("oppu.describe.default.load_base", load)
    task = MOTTO.model_copy(update={"profile_prompt": "Mottos: {history} Profile:"})
    wanted = Experiment(task, (ALL,), (), str(base), None, FAST, users=1)
    run(wanted, Dataset((motto_user("ann", 4),)), tmp_path)
    assert asked == ["smollm2-135m"]
    assert results(tmp_path)["config"]["profiles"] == "model:smollm2-135m"
    with Store(tmp_path / "store", read_only=True) as store:
        assert [record.user_id for record in store.profiles("motto")] == ["ann"]
    computed.clear()
    shorter = replace(wanted, own_profiles=Along(2, newest=1), profile_tokens=9)
    run(shorter, Dataset((motto_user("ann", 4),)), tmp_path)
    assert computed == [(name, k) for name, k in COLUMNS if "pag" in name]
    told = "model:smollm2-135m, 2 along a history of the newest 1 items, 9 tokens at most"
    assert results(tmp_path)["config"]["profiles"] == told
    with Store(tmp_path / "store", read_only=True) as store:
        (record,) = store.profiles("motto")
    assert [profile.items for profile in record.profiles] == [1, 1]


def test_a_task_that_says_nothing_of_profiles_is_refused_before_anything_is_done(base: Path, tmp_path: Path) -> None:
    wanted = Experiment(REMARK, (ALL,), (), str(base), None, FAST)
    with pytest.raises(ConfigError, match="task remark has no profile_prompt"):
        run(wanted, Dataset((motto_user("ann", 2),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--methods", "all", "--k", "1"), "--k: the columns of Table 1 have their own numbers of items"),
        (("--methods", "all,base"), "--methods: unknown method 'all'; use some of: base"),
        (
            ("--adapt-k", "1", "--no-adapt"),
            "--adapt-k: no base is adapted; leave out --adapt-k, or leave out --no-adapt",
        ),
        (("--adapt-pairs", "9", "--no-adapt"), "--adapt-pairs: no base is adapted"),
        (("--profile-newest", "5"), "--profile-newest: no model writes profiles in this run"),
        (("--methods", "all", "--profile-tokens", "9"), "--profile-tokens: no model writes profiles in this run"),
        (("--store", "x"), "--store: only profiles are read from a store; leave out --store, or add --profiles store"),
        (
            ("--trunk", "x"),
            "--trunk: modules on all layers have no layers below them; leave out --trunk, or add --layers",
        ),
        (("--seeds", "0,one"), "--seeds: '0,one' is no list of seeds; use for example --seeds 0,1,2"),
        (("--seeds", "0,1", "--seed", "3"), "--seeds: --seed and --seeds are given"),
        (("--seeds", "0,1,0"), "--seeds: seed 0 is named twice"),
        (("--task", "all"), "has no folder for citation, news_categorize"),
        (("--task", "movie_tagging,LaMP_2M"), "--task: task movie_tagging is named twice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[object], tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    at = arguments.index("--methods")
    assert message in refused(*arguments[:at], *arguments[at + 2 :], "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


# the bases of section 2.2


def test_by_default_each_method_has_a_base_adapted_with_what_its_prompts_show() -> None:
    for name, k in COLUMNS:
        found = method(name, k, 3)
        same = replace(found.setting, retriever="bm25")
        assert found.adapted_with == (same if found.setting.k or found.setting.profile else PLAIN)


def test_with_one_k_for_the_bases_there_are_three_of_them() -> None:
    retrieval, profile = Setting(k=2, seed=3), Setting(k=2, profile=True, seed=3)
    expected = {
        name: PLAIN if name in ("base", "oppu") else profile if "pag" in name else retrieval for name, _ in COLUMNS
    }
    for name, k in COLUMNS:
        found = method(name, k, 3, adapt_k=2)
        assert found.adapted_with == expected[name]
        assert found.setting == method(name, k, 3).setting
    assert method("rag", 0, 3, adapt_k=2).adapted_with == Setting(k=0, seed=3)


@pytest.mark.usefixtures("no_report")
def test_one_base_for_all_k_is_noted_and_without_it_the_methods_that_it_concerns_are_run_again(
    small: tuple[Experiment, Dataset], tmp_path: Path, computed: list[tuple[str, int]]
) -> None:
    wanted, dataset = small
    one = replace(wanted, methods=("rag", "base"), k=(1, 2), adapt_k=1)
    run(one, dataset, tmp_path)
    with Store(tmp_path / "store", read_only=True) as store:
        assert [base.name for base in store.bases()] == ["colour-bm25-k1", "colour-plain"]
    assert results(tmp_path)["config"]["adapt_k"] == 1
    computed.clear()
    run(replace(one, adapt_k=None), dataset, tmp_path)
    assert computed == [("rag", 2)]
    assert results(tmp_path)["config"]["adapt_k"] is None


# tasks and seeds


def test_one_task_with_one_seed_lies_where_it_always_did(tmp_path: Path) -> None:
    (only,) = plan_runs("news_categorize", [4], tmp_path / "data", None, tmp_path / "out")
    assert (only.data, only.out, only.seed) == (tmp_path / "data", tmp_path / "out", 4)


def test_several_seeds_read_the_same_data_and_several_tasks_a_folder_each(tmp_path: Path) -> None:
    two = plan_runs("news_categorize", [0, 1], tmp_path / "data", tmp_path / "base", tmp_path / "out")
    assert [(p.data, p.base_data, p.out) for p in two] == [
        (tmp_path / "data", tmp_path / "base", tmp_path / "out" / "news_categorize" / f"seed-{seed}") for seed in (0, 1)
    ]
    for task in BUILT_IN:
        (tmp_path / "all" / task).mkdir(parents=True)
    every = plan_runs("all", [0], tmp_path / "all", None, tmp_path / "out")
    assert [(p.task.name, p.data, p.out) for p in every] == [
        (name, tmp_path / "all" / name, tmp_path / "out" / name / "seed-0") for name in BUILT_IN
    ]


def test_a_folder_that_holds_a_run_takes_no_joint_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an experiment, whose report would be lost"):
        plan_runs("news_categorize", [0, 1], tmp_path, None, tmp_path)


def test_two_tasks_and_two_seeds_leave_four_runs_and_a_joint_report_and_go_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_report", lambda out, *_: out)
    hue = COLOUR.model_copy(update={"name": "hue"})
    tasks = [write_task(tmp_path / f"{task.name}.toml", task) for task in (COLOUR, hue)]
    for name in ("colour", "hue"):
        write_release(tmp_path / "data" / name, colour_users(9, 6), [colour_user("x", 3)])
    arguments = ["experiment", "--task", ",".join(map(str, tasks)), "--data", tmp_path / "data", "--base", base]
    arguments += ["--methods", "base,oppu", "--seeds", "0,7", "--no-adapt", "--out", tmp_path / "out", *SMALL]
    said = " ".join(done(*arguments).split())
    assert "hue, seed 7" in said
    assert "Of 4 comparisons of a personal column with its counterpart" in said
    out = tmp_path / "out"
    folders = {path.parent.relative_to(out).as_posix() for path in out.rglob("results.json")}
    assert folders == {"colour/seed-0", "colour/seed-7", "hue/seed-0", "hue/seed-7"}
    for folder in folders:
        config = results(tmp_path / "out" / folder)["config"]
        assert (config["seed"], config["personal"]["seed"]) == (int(folder[-1]),) * 2
    seeds = [read_cells(tmp_path / "out" / "colour" / f"seed-{seed}") for seed in (0, 7)]
    assert seeds[0][1].curves != seeds[1][1].curves
    with (tmp_path / "out" / "table1.csv").open(encoding="utf-8", newline="") as file:
        assert {row["seeds"] for row in csv.DictReader(file) if row["mean"]} == {"0 7"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'href="hue/seed-7/predictions/oppu-k0.json"' in page
    monkeypatch.setattr(module, "load_base", lambda *_, **__: pytest.fail("it loaded the base"))
    before = (tmp_path / "out" / "table1.csv").read_bytes()
    done(*arguments)
    assert (tmp_path / "out" / "table1.csv").read_bytes() == before


def test_a_mistake_in_the_last_tasks_data_is_said_before_the_first_trains(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_base", lambda *_, **__: pytest.fail("it loaded the base"))
    hue = COLOUR.model_copy(update={"name": "hue"})
    tasks = [write_task(tmp_path / f"{task.name}.toml", task) for task in (COLOUR, hue)]
    for name in ("colour", "hue"):
        write_release(tmp_path / "data" / name, colour_users(3, 2), [colour_user("x", 3)])
    (tmp_path / "data" / "hue" / "user_others.json").write_text("{")
    arguments = ["experiment", "--task", ",".join(map(str, tasks)), "--data", tmp_path / "data", "--base", base]
    assert "user_others.json" in refused(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _without_labels(data: Path) -> None:
    (data / "user_top_100_history_label.json").unlink()


def _without_held_out_users(data: Path) -> None:
    (data / "user_others.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_labels, "hue: query a-q0 has no label; an experiment needs every answer"),
        (
            _without_held_out_users,
            "hue: there are no held-out users to adapt the base on; "
            "give --base-data, or use the plain base with --no-adapt",
        ),
        (
            lambda data: write_release(data, colour_users(2), [colour_user("x", 3)]),
            "OUT: holds another run: its data, users, base or settings differ; "
            "use --fresh to start anew, or another --out",
        ),
        (
            lambda data: (data.parents[1] / "out" / "hue" / "seed-0" / "run.json").unlink(),
            "OUT: holds something else than an experiment; use another --out",
        ),
        (
            lambda data: (data.parents[1] / "out" / "hue" / "seed-0" / "cells" / "base-k0.json").write_text("{"),
            "OUT/cells: base-k0.json: damaged",
        ),
    ],
    ids=["labels", "held-out", "other data", "no record", "damaged"],
)
@pytest.mark.usefixtures("no_report")
def test_all_that_is_wrong_with_the_last_run_is_said_before_the_first_trains(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], message: str
) -> None:
    hue = COLOUR.model_copy(update={"name": "hue"})
    tasks = [write_task(tmp_path / f"{task.name}.toml", task) for task in (COLOUR, hue)]
    for name in ("colour", "hue"):
        write_release(tmp_path / "data" / name, [colour_user("a", 3)], [colour_user("x", 3)])
    out, options = tmp_path / "out" / "hue" / "seed-0", ("--base", base, "--methods", "base", "--adapt-epochs", 1)
    done("experiment", "--task", tasks[1], "--data", tmp_path / "data" / "hue", "--out", out, *options)
    spoil(tmp_path / "data" / "hue")
    monkeypatch.setattr(module, "load_base", lambda *_, **__: pytest.fail("it loaded the base"))
    both = ("--task", ",".join(map(str, tasks)), "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert refused("experiment", *both, *options).startswith(message.replace("OUT", str(out)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hue"]


def test_a_file_of_profiles_is_for_one_task(base: Path, tmp_path: Path) -> None:
    for name in ("movie_tagging", "news_categorize"):
        (tmp_path / name).mkdir()
    arguments = ["experiment", "--task", "movie_tagging,news_categorize", "--data", tmp_path, "--base", base]
    message = refused(*arguments, "--profiles", tmp_path / "profiles.json", "--out", tmp_path / "out")
    assert message == "--profiles: a file holds the profiles of one task; use --profiles store\n".rstrip()
