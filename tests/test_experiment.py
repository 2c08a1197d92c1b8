"""One run, one table: what it leaves behind, how it goes on, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import contents
from toys import COLOUR, FAST, colour_user, tiny_base_folder, write_release

from oppu.data import read_dataset
from oppu.errors import ConfigError, DataError, StoreError
from oppu.evaluate import experiment as module
from oppu.evaluate.design import Experiment, Method, method
from oppu.evaluate.experiment import Stage, run
from oppu.evaluate.results import Cell
from oppu.evaluate.runs import read_run
from oppu.examples import PLAIN, Setting
from oppu.records import Dataset
from oppu.store import Store
from oppu.store.files import temporary_name
from oppu.train import Machine

METHODS = ("base", "random", "rag", "oppu", "oppu+rag")
ROWS = [("majority", 0), ("base", 0), ("random", 1), ("rag", 1), ("oppu", 0), ("oppu+rag", 1)]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Read from files, as a run from the command line reads it."""
    users = [colour_user("a", 4, queries=2), colour_user("b", 2), colour_user("c", 3), colour_user("short", 1)]
    return read_dataset(
        write_release(tmp_path_factory.mktemp("data"), users, [colour_user("x", 3), colour_user("y", 2)]), COLOUR
    )


@pytest.fixture(scope="module")
def wanted(base_folder: Path) -> Experiment:
    return Experiment(COLOUR, METHODS, (1,), str(base_folder), FAST, FAST, users=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, wanted: Experiment, dataset: Dataset) -> Path:
    """A finished run, not to be changed: tests take copies."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(wanted, dataset, out, command="oppu experiment ...")
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take seconds, and one run in full shows them."""
    monkeypatch.setattr(module, "write_report", lambda out, *_: out)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("oppu.personalize.train", "oppu.adapt.train_into_base"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("it trained"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The cells that are computed, in order."""
    cells: list[tuple[str, int]] = []
    original: Callable[..., Cell] = module._Bench.cell

    def cell(self: Any, name: str, k: int, users: Any) -> Cell:
        found = original(self, name, k, users)
        cells.append((name, k))
        return found

    monkeypatch.setattr(module._Bench, "cell", cell)
    return cells


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def files(out: Path) -> dict[str, bytes]:
    """What a run writes for people, by name."""
    names = [out / "results.json", *sorted((out / "predictions").iterdir())]
    return {str(path.relative_to(out)): path.read_bytes() for path in names}


# what it leaves behind


def test_results_json_has_the_task_the_config_and_a_row_for_each_method(finished: Path) -> None:
    found = results(finished)
    assert found.keys() == {"task", "config", "rows"}
    assert found["task"] == "colour"
    assert [(row["method"], row["k"]) for row in found["rows"]] == ROWS
    for row in found["rows"]:
        assert row.keys() == {"method", "k", "metrics", "users", "queries", "seconds"}
        assert (row["users"], row["queries"]) == (3, 4)
        assert row["metrics"].keys() == {"accuracy", "f1_macro", "f1_macro_present"}
        assert all(0 <= value <= 1 for value in row["metrics"].values())
    assert all(row["seconds"] > 0 for row in found["rows"] if row["method"] != "majority")
    config = found["config"]
    assert (config["command"], config["users"], config["seed"]) == ("oppu experiment ...", 3, 0)
    assert config["personal"]["learning_rate"] == FAST.learning_rate
    assert config["versions"].keys() == {"oppu", "python", "torch", "transformers", "peft"}


def test_predictions_are_in_lamps_format_with_every_query_once(finished: Path, dataset: Dataset) -> None:
    asked = {query.id: query.gold for user in dataset.users if user.id != "short" for query in user.queries}
    names = {f"{name}-k{k}.json" for name, k in ROWS}
    assert {path.name for path in (finished / "predictions").iterdir()} == names
    for row, name in zip(results(finished)["rows"], [f"{name}-k{k}" for name, k in ROWS], strict=True):
        found = json.loads((finished / "predictions" / f"{name}.json").read_text(encoding="utf-8"))
        assert found.keys() == {"task", "golds"}
        assert found["task"] == "colour"
        assert sorted(gold["id"] for gold in found["golds"]) == sorted(asked)
        assert all(gold.keys() == {"id", "output"} and gold["output"] in COLOUR.labels for gold in found["golds"])
        right = sum(asked[gold["id"]] == gold["output"] for gold in found["golds"])
        assert row["metrics"]["accuracy"] == pytest.approx(right / 4)


def test_the_report_is_one_file_with_every_method(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name, _ in ROWS)
    assert "<svg" in page or "data:image" in page
    assert 'src="http' not in page


def test_bases_and_modules_are_kept_in_the_runs_own_store(finished: Path) -> None:
    with Store(finished / "store", read_only=True) as store:
        assert [base.name for base in store.bases()] == ["colour-bm25-k1", "colour-plain"]
        assert [(r.user_id, r.setting, r.base_name) for r in store.modules()] == [
            (user, setting, f"colour-{setting}") for user in "abc" for setting in ("bm25-k1", "plain")
        ]


def test_methods_are_those_of_the_papers_tables() -> None:
    retrieval, random = Setting(k=2, seed=5), Setting(k=2, retriever="random", seed=5)
    found = {name: method(name, 2, 5) for name in METHODS}
    assert {name: (m.setting, m.adapted_with, m.personal) for name, m in found.items()} == {
        "base": (PLAIN, PLAIN, False),
        "random": (random, retrieval, False),
        "rag": (retrieval, retrieval, False),
        "oppu": (PLAIN, PLAIN, True),
        "oppu+rag": (retrieval, retrieval, True),
    }


def test_every_method_that_retrieves_uses_the_retriever_and_no_other_method_knows_of_it() -> None:
    recent, both = Setting(2, "recent", seed=5), Setting(2, "recent", profile=True, seed=5)
    expected = {name: method(name, 2, 5) for name in ("base", "oppu", "pag", "oppu+pag")} | {
        "random": Method(Setting(2, "random", seed=5), recent, False),
        "rag": Method(recent, recent, False),
        "oppu+rag": Method(recent, recent, True),
        "pag+rag": Method(both, both, False),
        "oppu+pag+rag": Method(both, both, True),
    }
    assert {name: method(name, 2, 5, retriever="recent") for name in expected} == expected
    assert method("pag", 2, 5, 1, "recent").adapted_with == replace(both, k=1)


@pytest.mark.usefixtures("no_report")
def test_with_another_retriever_the_methods_that_it_concerns_are_run_again_and_no_others(
    out: Path, wanted: Experiment, dataset: Dataset, computed: list[tuple[str, int]]
) -> None:
    run(replace(wanted, retriever="recent"), dataset, out)
    assert computed == [("random", 1), ("rag", 1), ("oppu+rag", 1)]
    assert results(out)["config"]["retriever"] == "recent"
    with Store(out / "store", read_only=True) as store:
        assert {base.name for base in store.bases()} == {"colour-bm25-k1", "colour-plain", "colour-recent-k1"}


def test_an_unknown_retriever_costs_nothing(tmp_path: Path, wanted: Experiment, dataset: Dataset) -> None:
    message = "unknown retriever 'bm52'; use one of: bm25, random, recent"
    with pytest.raises(ConfigError, match=message):
        run(replace(wanted, methods=("base",), retriever="bm52"), dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# going on


def test_a_rerun_computes_nothing_and_writes_the_same(
    out: Path, wanted: Experiment, dataset: Dataset, no_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_base", lambda *_: pytest.fail("it loaded the base"))
    before, page = files(out), (out / "report.html").read_bytes()
    run(wanted, dataset, out, command="oppu experiment ...")
    assert files(out) == before
    assert (out / "report.html").read_bytes() == page


@pytest.mark.usefixtures("no_report")
def test_another_method_or_k_computes_that_one_alone(
    out: Path, wanted: Experiment, dataset: Dataset, computed: list[tuple[str, int]]
) -> None:
    before = {(row["method"], row["k"]): row for row in results(out)["rows"]}
    run(replace(wanted, methods=("base", "rag"), k=(1, 2)), dataset, out)
    assert computed == [("rag", 2)]
    rows = {(row["method"], row["k"]): row for row in results(out)["rows"]}
    assert list(rows) == [("majority", 0), ("base", 0), ("rag", 1), ("rag", 2)]
    assert all(rows[name] == before[name] for name in rows if name != ("rag", 2))


@pytest.mark.usefixtures("no_report", "no_training")
def test_a_method_left_out_and_taken_in_again_is_not_computed_again(
    out: Path, wanted: Experiment, dataset: Dataset, computed: list[tuple[str, int]]
) -> None:
    run(replace(wanted, methods=("oppu",)), dataset, out)
    assert [row["method"] for row in results(out)["rows"]] == ["majority", "oppu"]
    run(wanted, dataset, out)
    assert [(row["method"], row["k"]) for row in results(out)["rows"]] == ROWS
    assert computed == []


@pytest.mark.usefixtures("no_report")
def test_a_run_interrupted_between_cells_goes_on_with_the_next(
    tmp_path: Path, finished: Path, wanted: Experiment, dataset: Dataset, computed: list[tuple[str, int]]
) -> None:
    def interrupt(stage: Stage) -> None:
        if stage.name.startswith("oppu k=0: answers"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wanted, dataset, tmp_path, on_stage=interrupt)
    assert computed == [("base", 0), ("random", 1), ("rag", 1)]
    assert not (tmp_path / "results.json").exists()
    trained: list[str] = []
    run(wanted, dataset, tmp_path, on_stage=lambda stage: trained.append(stage.name) if stage.tokens else None)
    assert computed[3:] == [("oppu", 0), ("oppu+rag", 1)]
    assert set(trained) == {"oppu+rag k=1: training"}
    assert {n: f for n, f in files(tmp_path).items() if n != "results.json"} == {
        n: f for n, f in files(finished).items() if n != "results.json"
    }


@pytest.mark.usefixtures("no_report")
def test_a_run_interrupted_in_a_training_keeps_the_finished_users(
    tmp_path: Path, wanted: Experiment, dataset: Dataset
) -> None:
    alone = replace(wanted, methods=("oppu",), adapt=None)

    def interrupt(stage: Stage) -> None:
        if stage.name.endswith("training") and stage.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(alone, dataset, tmp_path, machine=Machine(slots=1), on_stage=interrupt)
    with Store(tmp_path / "store") as store:
        (first,) = store.modules()
    run(alone, dataset, tmp_path, machine=Machine(slots=1))
    with Store(tmp_path / "store") as store:
        assert [(record.user_id, record.version) for record in store.modules()] == [("a", 1), ("b", 1), ("c", 1)]
        assert first in store.modules()


# refusals


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"users": 2}, {"personal": replace(FAST, epochs=2)}, {"adapt": None}, {"newest": 1}],
    ids=lambda change: next(iter(change)),
)
def test_another_runs_folder_is_refused_and_left_as_it_is(
    out: Path, wanted: Experiment, dataset: Dataset, change: dict[str, Any]
) -> None:
    before = files(out)
    with pytest.raises(ConfigError) as caught:
        run(replace(wanted, **change), dataset, out)
    assert caught.value.line() == (
        f"{out}: holds another run: its data, users, base or settings differ; "
        "use --fresh to start anew, or another --out"
    )
    assert files(out) == before


def test_other_data_is_another_run(out: Path, wanted: Experiment, dataset: Dataset) -> None:
    fewer = Dataset(dataset.users, dataset.base_users[:1])
    with pytest.raises(ConfigError, match="holds another run"):
        run(wanted, fewer, out)


@pytest.mark.usefixtures("no_report")
def test_settings_of_modules_bind_a_folder_once_it_has_modules(
    tmp_path: Path, wanted: Experiment, dataset: Dataset, computed: list[tuple[str, int]]
) -> None:
    run(replace(wanted, methods=("base",)), dataset, tmp_path)
    other = replace(wanted, methods=("base", "oppu"), personal=replace(FAST, epochs=2))
    run(other, dataset, tmp_path)
    assert computed == [("base", 0), ("oppu", 0)]
    run(replace(wanted, methods=("base",)), dataset, tmp_path)
    with pytest.raises(ConfigError, match="holds another run"):
        run(replace(wanted, methods=("base", "oppu")), dataset, tmp_path)


@pytest.mark.usefixtures("no_report")
def test_fresh_starts_anew_and_leaves_what_is_not_the_runs(
    out: Path, wanted: Experiment, dataset: Dataset, computed: list[tuple[str, int]]
) -> None:
    (out / "notes.txt").write_text("mine")
    changed = replace(wanted, methods=("base",), adapt=None, seed=1)
    run(changed, dataset, out, fresh=True)
    assert computed == [("base", 0)]
    assert [row["method"] for row in results(out)["rows"]] == ["majority", "base"]
    assert {path.name for path in (out / "predictions").iterdir()} == {"majority-k0.json", "base-k0.json"}
    with Store(out / "store") as store:
        assert (store.modules(), store.bases()) == ((), ())
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("other", ["study.json", "table1.csv", "store/oppu.db", "oppu.db", "run.json", "notes.txt"])
def test_a_folder_that_is_no_runs_is_refused_and_left_as_it_is(
    tmp_path: Path, wanted: Experiment, dataset: Dataset, other: str, fresh: bool
) -> None:
    for name in (other, "report.html", "cells/base-k0.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run(wanted, dataset, tmp_path, fresh=fresh)
    assert caught.value.line() == f"{tmp_path}: holds something else than an experiment; use another --out"
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("fresh", [False, True])
def test_what_a_first_start_left_that_was_killed_at_once_is_gone_on_with(
    tmp_path: Path, wanted: Experiment, dataset: Dataset, fresh: bool
) -> None:
    (tmp_path / temporary_name("run.json")).write_text("{")
    run(replace(wanted, methods=("base",), adapt=None), dataset, tmp_path, fresh=fresh)
    assert (tmp_path / "results.json").is_file()


@pytest.mark.usefixtures("no_report")
def test_a_fresh_start_that_was_killed_while_it_removed_the_old_run_is_gone_on_with(
    out: Path, wanted: Experiment, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(wanted, methods=("base",), adapt=None, seed=1)
    with monkeypatch.context() as patched:
        patched.setattr("oppu.evaluate.run_folder.make_folders", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            run(changed, dataset, out, fresh=True)
    run(changed, dataset, out, fresh=True)
    assert [row["method"] for row in results(out)["rows"]] == ["majority", "base"]


def test_a_mistyped_method_costs_nothing_even_with_fresh(out: Path, wanted: Experiment, dataset: Dataset) -> None:
    before = files(out)
    with pytest.raises(ConfigError, match="--methods: unknown method 'opu'; use some of: base, random, rag, oppu"):
        run(replace(wanted, methods=("base", "opu")), dataset, out, fresh=True)
    assert files(out) == before


def test_a_query_without_a_label_is_refused(tmp_path: Path, wanted: Experiment, dataset: Dataset) -> None:
    user = dataset.users[0]
    unlabelled = replace(user, queries=(replace(user.queries[0], gold=None),))
    with pytest.raises(DataError, match="query a-q0 has no label; an experiment needs every answer"):
        run(wanted, Dataset((unlabelled,), dataset.base_users), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_users_without_a_question_do_not_take_part(tmp_path: Path, wanted: Experiment, dataset: Dataset) -> None:
    long, short = dataset.users[0], dataset.users[3]
    silent = replace(long, queries=())
    module.check(replace(wanted, users=1), Dataset((silent, short), dataset.base_users), tmp_path / "out")
    checked = module._checked(
        replace(wanted, users=1), Dataset((silent, short), dataset.base_users), tmp_path / "out", None, False, None
    )
    assert [user.id for user in checked.users] == ["short"]
    with pytest.raises(DataError, match="no user has a question; give data with questions and their answers"):
        run(wanted, Dataset((silent,), dataset.base_users), tmp_path / "out")


@pytest.mark.usefixtures("no_report")
def test_profiles_of_nobody_who_is_asked_are_refused(
    tmp_path: Path, wanted: Experiment, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    told = replace(wanted, methods=("pag",))
    with pytest.raises(DataError, match="--profiles: none of the 1 profiles is of a user who is asked"):
        module.check(told, dataset, tmp_path, profiles={"stranger": "likes red"})
    run(replace(told, adapt=None), dataset, tmp_path, profiles={"a": "likes red"})
    assert "2 of 3 users have no profile; their prompts show none" in caplog.text


@pytest.mark.usefixtures("no_report")
def test_a_run_whose_cells_are_being_made_anew_is_unfinished(
    out: Path, wanted: Experiment, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Bench, "cell", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):  # a method more: the table so far stays
        run(replace(wanted, methods=(*METHODS, "rag"), k=(1, 2)), dataset, out)
    assert (out / "results.json").is_file()
    with pytest.raises(pytest.fail.Exception):
        run(replace(wanted, retriever="recent"), dataset, out)
    with pytest.raises(ConfigError, match="is an unfinished experiment; run its command again"):
        read_run(out)


@pytest.mark.usefixtures("no_report")
def test_cells_of_another_precision_are_another_run(
    out: Path, wanted: Experiment, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "dtype_name", lambda *_: "bfloat16")  # what auto stands for on another machine
    with pytest.raises(ConfigError, match="holds another run"):
        run(wanted, dataset, out)


def test_without_held_out_users_adaption_is_refused(tmp_path: Path, wanted: Experiment, dataset: Dataset) -> None:
    with pytest.raises(DataError, match="there are no held-out users to adapt the base on"):
        run(wanted, Dataset(dataset.users), tmp_path)


@pytest.mark.usefixtures("no_report")
def test_without_adaption_every_method_uses_the_base_as_it_is(
    tmp_path: Path, wanted: Experiment, dataset: Dataset
) -> None:
    run(replace(wanted, methods=("base", "oppu"), adapt=None, users=1), Dataset(dataset.users), tmp_path)
    with Store(tmp_path / "store") as store:
        assert store.bases() == ()
        assert [record.base_name for record in store.modules()] == [wanted.base]


@pytest.mark.usefixtures("no_report")
def test_no_retrieved_items_may_stand_beside_some(
    tmp_path: Path, wanted: Experiment, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = module.answer_users

    def answer(base: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        seen.append(plan.setting.k)
        return original(base, plan, *rest, **options)

    monkeypatch.setattr(module, "answer_users", answer)
    run(replace(wanted, methods=("rag",), k=(2, 0), adapt=None), dataset, tmp_path)
    assert seen == [2, 0]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path, wanted: Experiment, dataset: Dataset) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file: a file of that name is in the way; use another folder") as caught:
        run(wanted, dataset, tmp_path / "file" / "out")
    assert "\n" not in caught.value.line()


@pytest.mark.usefixtures("no_report")
def test_a_damaged_cell_is_named_and_the_others_stay(out: Path, wanted: Experiment, dataset: Dataset) -> None:
    cell = out / "cells" / "rag-k1.json"
    cell.write_bytes(cell.read_bytes()[:100])
    with pytest.raises(DataError, match=r"cells: rag-k1\.json: damaged: .*; delete the file to compute it again"):
        run(wanted, dataset, out)
    cell.unlink()
    run(wanted, dataset, out)
    assert [(row["method"], row["k"]) for row in results(out)["rows"]] == ROWS
