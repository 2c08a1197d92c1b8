"""What studies share that train: the numbers of an experiment, bases adapted once, and nothing computed twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import done, refused
from toys import tiny_base_folder
from trials import TINY, ran, rows_of, sample

from oppu.adapt import adapt
from oppu.errors import ConfigError, DataError
from oppu.evaluate.design import Experiment
from oppu.evaluate.experiment import run
from oppu.evaluate.lab.trial import (
    Ran,
    Trial,
    TrialSettings,
    difference,
    differences,
    gains_of,
    metric_columns,
    metric_values,
    open_trial,
    score_cell_of,
    series,
)
from oppu.evaluate.metrics import score
from oppu.evaluate.study import Workplace
from oppu.examples import PLAIN
from oppu.model.kinds import LoraConfig
from oppu.records import Dataset
from oppu.store import Store
from oppu.tasks import task_to_toml
from oppu.train import train

METHODS = ("base", "rag", "oppu", "oppu+rag")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def settings(base: Path) -> TrialSettings:
    return TrialSettings(
        base=str(base), users=2, newest=4, adapt_pairs=8, adapt_epochs=1, epochs=2, learning_rate=0.03, batch_size=4,
        rank=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def found(settings: TrialSettings, place: Workplace) -> Ran:
    """A variant with every method; its folder is not to be changed."""
    return open_trial(settings, place).run("all", METHODS)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained from now on: `modules`, or a base's name."""
    calls: list[str] = []

    def adapting(*given: Any, name: str, **more: Any) -> Any:
        calls.append(name)
        return adapt(*given, name=name, **more)

    def training(base: Any, jobs: Any, *more: Any) -> Any:
        listed = list(jobs)
        calls.extend(["modules"] if listed else [])
        return train(base, listed, *more)

    monkeypatch.setattr("oppu.adapt.adapt", adapting)
    monkeypatch.setattr("oppu.personalize.train", training)
    return calls


@pytest.mark.parametrize(
    ("adapt", "said"),
    [(True, "The base was adapted on whole items."), (False, "The base is taken as it is, not adapted.")],
)
def test_a_page_says_whether_the_base_was_adapted(tmp_path: Path, adapt: bool, said: str) -> None:
    trial = open_trial(replace(TrialSettings(), adapt=adapt), Workplace(tmp_path, lambda *_: None))
    assert trial.base_note("on whole items") == said


def test_a_variant_answers_as_the_same_experiment_does(found: Ran, settings: TrialSettings, tmp_path: Path) -> None:
    task, users, base_users = sample()
    recipe = open_trial(settings, Workplace(tmp_path)).recipe
    wanted = Experiment(
        task=task,
        methods=METHODS,
        k=(1,),
        base=str(settings.base),
        adapt=recipe.adapt,
        personal=recipe.personal,
        users=2,
        newest=4,
        pairs=8,
    )
    cells = run(wanted, Dataset(users, base_users), tmp_path / "run", report=False)
    assert [(cell.method, cell.k) for cell in cells] == [("majority", 0), *((c.method, c.k) for c in found.cells[1:])]
    assert {cell.name: cell.predictions for cell in cells} == {cell.name: cell.predictions for cell in found.cells}
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_options_are_those_of_the_training(settings: TrialSettings, tmp_path: Path) -> None:
    recipe = open_trial(replace(settings, seed=5), Workplace(tmp_path)).recipe
    assert (recipe.personal.epochs, recipe.personal.learning_rate, recipe.personal.batch_size) == (2, 0.03, 4)
    assert recipe.personal.module == LoraConfig(rank=2, alpha=2)
    assert (recipe.adapt.epochs, recipe.adapt.seed, recipe.personal.seed) == (1, 5, 5)
    assert open_trial(replace(settings, learning_rate=None), Workplace(tmp_path)).recipe.personal.learning_rate == 1e-5


def test_prompts_with_and_without_retrieval_have_bases_of_their_own(found: Ran) -> None:
    names = {name: Path(base.name).name for name, base in found.bases.items()}
    assert names["base-k0"] == names["oppu-k0"] == "note_filing-plain"
    assert names["rag-k1"] == names["oppu+rag-k1"] == "note_filing-bm25-k1"
    assert found.bases["base-k0"].fingerprint != found.bases["rag-k1"].fingerprint
    assert found.stores["oppu-k0"] != found.stores["oppu+rag-k1"]


def test_another_retriever_has_a_base_and_modules_of_its_own(
    found: Ran, settings: TrialSettings, place: Workplace, trained: list[str]
) -> None:
    other = open_trial(replace(settings, retriever="recent"), place).run("all", METHODS)
    assert trained == ["note_filing-recent-k1", "modules"]
    assert {name: Path(base.name).name for name, base in other.bases.items()} == {
        "base-k0": "note_filing-plain",
        "rag-k1": "note_filing-recent-k1",
        "oppu-k0": "note_filing-plain",
        "oppu+rag-k1": "note_filing-recent-k1",
    }
    assert other.cell("oppu") == found.cell("oppu")
    with Store(other.stores["oppu+rag-k1"], read_only=True) as store:
        assert {record.setting for record in store.modules()} == {"recent-k1"}


def test_the_case_study_shows_and_scores_what_the_named_retriever_finds(tmp_path: Path) -> None:
    rows = rows_of(ran("case", tmp_path, "--retriever", "recent"))
    newest = {user.history[-1].id for user in sample()[1]}
    assert {row["retrieved"] for row in rows if row["method"] in ("rag", "oppu+rag")} <= newest


@pytest.mark.parametrize("name", ["retrieved", "bias", "conflicts", "finetuning"])
def test_studies_retrieve_with_the_retriever_that_is_named(name: str, tmp_path: Path) -> None:
    more = {"conflicts": ("--shares", "0.5"), "finetuning": ("--rates", "1e-4"), "retrieved": ("--k", "0,1")}
    out = ran(name, tmp_path, "--retriever", "recent", *more.get(name, ()))
    bases = {base.name for base in (out / "store" / "bases").iterdir() if not base.name.startswith(".")}
    assert bases == {"note_filing-plain", "note_filing-recent-k1"}


def test_an_unknown_retriever_is_refused_at_once(settings: TrialSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown retriever 'bm52'; use one of: bm25, random, recent"):
        open_trial(replace(settings, retriever="bm52"), Workplace(tmp_path))


def test_what_is_finished_is_not_computed_again(
    found: Ran, settings: TrialSettings, place: Workplace, trained: list[str]
) -> None:
    assert open_trial(settings, place).run("all", METHODS) == found
    assert trained == []


def test_another_variant_stands_on_the_same_bases(
    found: Ran, settings: TrialSettings, place: Workplace, trained: list[str]
) -> None:
    trial = open_trial(settings, place)
    short = Dataset(
        tuple(replace(user, history=user.history[-2:]) for user in trial.dataset.users), trial.dataset.base_users
    )
    other = trial.run("short", METHODS, dataset=short)
    assert trained == ["modules", "modules"]
    assert other.bases == found.bases
    assert other.cell("base").predictions == found.cell("base").predictions
    assert other.cell("oppu").curves != found.cell("oppu").curves


def test_one_more_method_or_k_costs_itself_alone(
    found: Ran, settings: TrialSettings, place: Workplace, trained: list[str]
) -> None:
    more = open_trial(settings, place).run("all", (*METHODS, "random"), k=(1, 2))
    assert trained == ["note_filing-bm25-k2", "modules"]
    listed = [(cell.method, cell.k) for cell in more.cells]
    assert listed == [
        ("majority", 0), ("base", 0), ("rag", 1), ("rag", 2), ("oppu", 0), ("oppu+rag", 1), ("oppu+rag", 2),
        ("random", 1), ("random", 2),
    ]  # fmt: skip
    assert more.cell("oppu+rag") == found.cell("oppu+rag")
    assert more.cell("oppu+rag", 2) == more.cells[6]


def test_a_base_adapted_on_questions_alone_is_one_that_an_experiment_without_histories_makes(
    settings: TrialSettings, tmp_path: Path, trained: list[str]
) -> None:
    alone = replace(settings, adapt_histories=False)
    made = open_trial(alone, Workplace(tmp_path / "study")).run("one", ("base",))
    task, users, base_users = sample()
    recipe = open_trial(alone, Workplace(tmp_path)).recipe
    wanted = Experiment(
        task=task,
        methods=("base",),
        k=(1,),
        base=str(settings.base),
        adapt=recipe.adapt,
        personal=recipe.personal,
        pairs=8,
        histories=False,
    )
    run(wanted, Dataset(users, base_users), tmp_path / "run", bases=tmp_path / "study", report=False)
    assert trained == ["note_filing-plain"]
    ours = Path(made.bases["base-k0"].name) / "model.safetensors"
    assert ours.samefile(tmp_path / "run" / "store" / "bases" / "note_filing-plain" / "model.safetensors")
    open_trial(settings, Workplace(tmp_path / "study")).run("one", ("base",))
    assert trained == ["note_filing-plain"] * 2  # with histories it is another


def test_an_adaption_with_other_settings_is_another_base_with_other_runs(
    settings: TrialSettings, tmp_path: Path, trained: list[str]
) -> None:
    place = Workplace(tmp_path)
    before = open_trial(settings, place).run("one", ("base",))
    after = open_trial(replace(settings, adapt_pairs=4), place).run("one", ("base",))
    assert trained == ["note_filing-plain"] * 2
    assert before.bases["base-k0"].name == after.bases["base-k0"].name
    assert before.bases["base-k0"].fingerprint != after.bases["base-k0"].fingerprint
    assert before.stores["base-k0"] != after.stores["base-k0"]  # or the old answers would be taken for the new base's


def test_without_adaption_the_base_is_taken_as_it_is(
    settings: TrialSettings, tmp_path: Path, trained: list[str]
) -> None:
    trial = open_trial(replace(settings, adapt=False), Workplace(tmp_path))
    assert trial.adapted(PLAIN).name == settings.base
    trial.run("one", ("base", "rag"))
    assert trained == []


def test_the_predictions_of_every_variant_are_noted_with_its_name(settings: TrialSettings, tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    trial = open_trial(settings, place)
    for name in ("one", "two", "one"):
        ran = trial.run(name, ("base", "rag"))
    named = [f"{name}: {cell.name}" for name in ("one", "two") for cell in ran.cells]
    assert sorted(each["what"] for each in place.sources) == sorted(named)
    assert all((tmp_path / each["file"]).is_file() for each in place.sources)
    assert all("/predictions/" in each["file"] for each in place.sources)


def test_progress_names_variant_and_stage(settings: TrialSettings, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    place = Workplace(tmp_path, lambda name, done, total: seen.append((name, done, total)))
    open_trial(settings, place).run("one", ("oppu",))
    names = list(dict.fromkeys(name for name, *_ in seen))
    assert names == ["adapting the base (plain)", "one: oppu k=0: training", "one: oppu k=0: answers"]
    assert all(0 <= done <= total for _, done, total in seen)


def test_users_without_questions_are_left_out_and_the_longest_histories_are_taken(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"user": u, "split": "history", "input": f"{u} {n}", "output": "work"} for u in "abc" for n in range(3)]
    rows += [{"user": "c", "split": "history", "input": "c 3", "output": "home"}]
    rows += [{"user": "a", "split": "history", "input": f"a {n}", "output": "home"} for n in range(3, 9)]
    rows += [{"user": u, "split": "query", "input": "new", "output": "work"} for u in "bc"]
    file.write_text("".join(json.dumps({"id": f"{place}", **row}) + "\n" for place, row in enumerate(rows)))
    given = TrialSettings(task=str(tmp_path / "task.toml"), data=file, base=str(base), users=1)
    (tmp_path / "task.toml").write_text(task_to_toml(sample()[0]))
    trial = open_trial(given, Workplace(tmp_path / "out"))
    assert [user.id for user in trial.dataset.users] == ["c"]
    assert (
        trial.facts()
        == f"Personal filing of notes (simulated): 1 user, 1 question; base {base}; modules of the newest 20 items."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "movie_tagging"}, "--task needs --data"),
        ({"data": Path("somewhere")}, "--data needs --task"),
    ],
)
def test_a_task_without_data_is_refused(
    settings: TrialSettings, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_trial(replace(settings, **changes), Workplace(tmp_path))


def test_data_without_held_out_users_say_what_to_do(tmp_path: Path, base: Path) -> None:
    task, users, _ = sample()
    trial = Trial(TrialSettings(base=str(base)), Workplace(tmp_path), task, Dataset(users), open_recipe(base, tmp_path))
    with pytest.raises(
        DataError, match="no held-out users to adapt the base on; give base users, or use the plain base"
    ):
        trial.run("one", ("base",))


def open_recipe(base: Path, place: Path) -> Any:
    return open_trial(TrialSettings(base=str(base)), Workplace(place)).recipe


# scored rows


def test_a_row_has_every_metric_and_the_interval_of_the_first(found: Ran) -> None:
    task, _, _ = sample()
    cell = found.cell("oppu")
    names = [column.name for column in metric_columns(task)]
    values = dict(zip(names, metric_values(task, score_cell_of(task, cell)), strict=True))
    expected = score(task, [p.gold for p in cell.predictions], [p.output for p in cell.predictions])
    assert {name: values[name] for name in expected} == expected
    assert float(values["accuracy_low"] or 0) <= expected["accuracy"] <= float(values["accuracy_high"] or 0)
    assert names == ["accuracy", "f1_macro", "f1_macro_present", "accuracy_low", "accuracy_high"]


def test_series_and_gains_have_values_and_intervals(found: Ran) -> None:
    task, _, _ = sample()
    line = series(task, "both", (1, 2), [found.cell("base"), found.cell("oppu")])
    scored = [score_cell_of(task, found.cell(name)) for name in ("base", "oppu")]
    assert line.y == tuple(each.metrics["accuracy"] for each in scored)
    assert line.ranges == tuple(each.intervals["accuracy"] for each in scored)
    gain = gains_of(task, "gain", (1,), [(found.cell("oppu"), found.cell("base"))])
    assert gain.y == (pytest.approx(line.y[1] - line.y[0]),)
    rating = task.model_copy(update={"kind": "rating", "labels": ("1", "2", "3")})
    low, high = (
        replace(
            found.cell("base"),
            predictions=tuple(replace(p, gold="1", output=text) for p in found.cell("base").predictions),
        )
        for text in ("2", "3")
    )
    assert gains_of(rating, "", (1,), [(low, high)]).y == (1.0,)  # a smaller error is a gain
    assert difference(rating, low, high) == "−1.000 in MAE (95 % −1.000 to −1.000)"
    assert differences(rating, {"one": (low, high), "other": (low, low)}) == (
        "in MAE one −1.000 (95 % −1.000 to −1.000), other .000 (.000 to .000)"
    )


def test_the_commands_have_these_options() -> None:
    text = " ".join(done("study", "retrieved", "--help").split())
    assert all(str(option) in text for option in TINY if str(option).startswith("--"))
    assert "--no-adapt" in text
    assert "is less than 0" in refused("study", "retrieved", "--k", "-1")
