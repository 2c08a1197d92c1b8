"""Lessons that are interrupted go on where they stood: modules, answers, and seconds."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from interruptions import Interrupted
from shell import done
from toys import tiny_base_folder

from oppu.data.sample import sample_tasks
from oppu.errors import DataError
from oppu.evaluate.lab.kept import Kept
from oppu.evaluate.lab.probe import Answers, Lesson, Probe, fingerprint
from oppu.evaluate.lab.trial import TrainingSettings, Trial, open_trial
from oppu.evaluate.study import Workplace
from oppu.examples import PLAIN, query_examples, training_examples
from oppu.model.module import Module
from oppu.records import Example
from oppu.train import Machine

ITEMS = 6


def test_what_is_asked_counts_with_its_options() -> None:
    example = Example("ann", "q", "which one?", "[1]", options=(("[1]", "this"), ("[2]", "that")))
    other = replace(example, options=(("[1]", "this"), ("[2]", "those")))
    assert fingerprint([example]) != fingerprint([other])


def test_labels_and_other_answers_are_not_asked_together(tiny: Path, tmp_path: Path) -> None:
    probe = Probe(trial_in(tiny, tmp_path, lambda *_: None))
    task = probe.trial.task
    asked = tuple(Example("ann", name, "note:", answer) for name, answer in (("a", task.labels[0]), ("b", "whatever")))
    with pytest.raises(DataError, match="1 of 2 right answers are none of the task's labels, such as that of b; leave"):
        probe.answers("base", [Lesson("ann", (), (each,)) for each in asked], PLAIN)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("probe") / "tiny")


@dataclass
class Steps:
    """Tells how many examples were trained, and ends a run when it has seen enough."""

    limit: int | None = None
    seen: int = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage.endswith(": training"):
            self.seen += 1
        wanted = "answers" if self.limit == 0 else "training"
        if self.limit is not None and stage.endswith(f": {wanted}") and self.seen > self.limit:
            raise Interrupted


def trial_in(tiny: Path, out: Path, steps: Callable[[str, int, int], None]) -> Trial:
    sample = sample_tasks()[0]
    settings = TrainingSettings(
        task=str(sample.task), data=sample.data, base=str(tiny), users=2, adapt=False, epochs=2, batch_size=1, rank=2
    )
    return open_trial(settings, Workplace(out, steps))


def asked(tiny: Path, out: Path, limit: int | None = None, *, newest: int = ITEMS) -> tuple[Answers, Probe, int]:
    """Two users' lessons, one after the other: answers, what answered, and how many steps were taken."""
    steps = Steps(limit)
    trial = trial_in(tiny, out, steps)
    task, users = trial.task, trial.dataset.users
    lessons = [
        Lesson(u.id, tuple(training_examples(task, u, newest=newest)), tuple(query_examples(task, u))) for u in users
    ]
    probe = Probe(trial, Machine(1, checkpoint_s=0))
    return probe.answers("modules", lessons, PLAIN), probe, steps.seen


def same_modules(a: Probe, b: Probe) -> bool:
    assert a._modules.keys() == b._modules.keys()
    return all(
        torch.equal(tensor, b._modules[key].tensors[name])
        for key, each in a._modules.items()
        for name, tensor in each.tensors.items()
    )


@pytest.mark.parametrize("limit", [5, 12, 17, 0])
def test_interrupted_lessons_go_on_to_the_last_bit(tiny: Path, tmp_path: Path, limit: int) -> None:
    """In the first user, between both, in the second, and in the answers."""
    expected, undisturbed, steps = asked(tiny, tmp_path / "undisturbed")
    assert steps == 4 * ITEMS
    with pytest.raises(Interrupted):
        asked(tiny, tmp_path / "out", limit)
    found, probe, left = asked(tiny, tmp_path / "out")
    assert left == (4 * ITEMS - limit if limit else 0)
    assert found.listed == expected.listed
    assert same_modules(probe, undisturbed)


def test_what_the_base_answers_does_not_depend_on_how_modules_are_trained(tiny: Path, tmp_path: Path) -> None:
    trial = trial_in(tiny, tmp_path, Steps(None))
    task, user = trial.task, trial.dataset.users[0]
    questions = tuple(query_examples(task, user))

    def measured(learnt: bool, rate: float) -> int:
        lesson = Lesson(user.id, tuple(training_examples(task, user, newest=2)) if learnt else (), questions)
        Probe(trial).answers("x", [lesson], PLAIN, personal=replace(trial.recipe.personal, learning_rate=rate))
        return len(list((tmp_path / "measurements").iterdir()))

    assert [measured(False, 0.01), measured(False, 0.02)] == [1, 1]
    assert [measured(True, 0.01), measured(True, 0.02)] == [2, 3]


def test_other_lessons_begin_anew_and_nothing_of_the_former_stays(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        asked(tiny, tmp_path, 17)
    before = {folder.name for folder in (tmp_path / "under-way").glob("*/")}
    assert asked(tiny, tmp_path, newest=ITEMS - 1)[2] == 4 * (ITEMS - 1)
    assert not before & {folder.name for folder in (tmp_path / "under-way").glob("*/")}


def test_seconds_are_those_of_all_runs_and_of_one_measurement_alone(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.seconds("one") == 0
    kept.put_seconds("one", 12.5)
    assert (kept.seconds("one"), kept.seconds("other")) == (12.5, 0)


@pytest.mark.parametrize(("name", "words"), [("checkpoint.safetensors", "the checkpoint cannot be used"),
                                             ("adapter_model.safetensors", "the module cannot be used")])  # fmt: skip
def test_what_is_damaged_is_said_and_trained_again(
    tiny: Path, tmp_path: Path, name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = asked(tiny, tmp_path / "undisturbed")[0]
    with pytest.raises(Interrupted):
        asked(tiny, tmp_path / "out", 17)
    (file,) = (tmp_path / "out" / "under-way").glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING, "oppu.evaluate"):
        found, _, left = asked(tiny, tmp_path / "out")
    assert words in caplog.text
    assert left == (2 * ITEMS if name.startswith("checkpoint") else 2 * ITEMS + 2 * ITEMS - 5)
    assert found.listed == expected.listed


def test_where_nothing_can_be_kept_the_study_goes_on(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("under-way").write_text("in the way")
    with caplog.at_level(logging.WARNING, "oppu.evaluate"):
        assert asked(tiny, tmp_path)[2] == 4 * ITEMS
    assert "what is under way cannot be kept; the study goes on" in caplog.text


def test_a_finished_study_leaves_nothing_under_way(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Path] = []
    put = Kept.put_module

    def watched(self: Kept, key: str, trained: Module) -> None:
        put(self, key, trained)
        kept.extend((tmp_path / "out" / "under-way").glob("*/adapter_model.safetensors"))

    monkeypatch.setattr(Kept, "put_module", watched)
    given = ("--no-adapt", "--epochs", "1", "--users", "3", "--newest", "2", "--sizes", "2")
    done("study", "users", "--base", tiny, "--out", tmp_path / "out", *given)
    assert kept
    assert not (tmp_path / "out" / "under-way").exists()
