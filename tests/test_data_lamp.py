"""LaMP's own questions and outputs files."""

import json
from pathlib import Path
from typing import Any

import pytest

from oppu.data import read_dataset
from oppu.errors import DataError
from oppu.tasks import BUILT_IN

NEWS = BUILT_IN["news_categorize"]
PROFILE = [{"id": "11", "text": "vote", "title": "t", "category": "politics", "date": "2013-11-06"}]


def entry(identifier: str, **more: Any) -> dict[str, Any]:
    return {"id": identifier, "input": "Which? categories: [travel] article: sea", "profile": PROFILE, **more}


def write(folder: Path, split: str, questions: Any, labels: dict[str, str] | None = None) -> Path:
    (folder / f"{split}_questions.json").write_text(json.dumps(questions))
    if labels is not None:
        golds = [{"id": identifier, "output": output} for identifier, output in labels.items()]
        (folder / f"{split}_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": golds}))
    return folder


def problems_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_dataset(path, NEWS)
    return caught.value.problems


def test_dev_gives_the_users_and_train_the_base_users(tmp_path: Path) -> None:
    write(tmp_path, "train", [entry("1")], {"1": "travel"})
    write(tmp_path, "dev", [entry("2"), entry("3")], {"2": "travel", "3": "politics"})
    write(tmp_path, "test", [entry("4")])
    dataset = read_dataset(tmp_path, NEWS)
    assert [user.id for user in dataset.users] == ["2", "3"]
    assert [user.id for user in dataset.base_users] == ["1"]
    assert [user.queries[0].gold for user in dataset.users] == ["travel", "politics"]
    assert dataset.users[0].queries[0].fields == {"text": "sea"}
    assert dataset.users[0].history[0].time == 1383696000.0


def test_a_user_id_in_the_question_names_the_user(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, "dev", [entry("2", user_id=77)]), NEWS)
    assert (dataset.users[0].id, dataset.users[0].queries[0].id) == ("77", "2")


def test_one_question_is_one_user_and_a_second_of_the_same_user_a_problem(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, "dev", [entry("2", user_id="u"), entry("3", user_id="u")]))
    assert "user 'u': duplicate user" in problem


def test_the_only_split_gives_the_users(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, "train", [entry("1")], {"1": "travel"}), NEWS)
    assert [user.id for user in dataset.users] == ["1"]
    assert dataset.base_users == ()


def test_without_dev_the_test_split_gives_users_without_labels(tmp_path: Path) -> None:
    write(tmp_path, "train", [entry("1")], {"1": "travel"})
    dataset = read_dataset(write(tmp_path, "test", [entry("2")]), NEWS)
    assert (dataset.users[0].id, dataset.users[0].queries[0].gold) == ("2", None)
    assert dataset.base_users[0].id == "1"


def test_one_questions_file_can_be_read_with_the_outputs_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "train", [entry("1")], {"1": "travel"})
    write(tmp_path, "dev", [entry("2")], {"2": "politics"})
    dataset = read_dataset(tmp_path / "dev_questions.json", NEWS)
    assert (dataset.users[0].queries[0].gold, dataset.base_users) == ("politics", ())


def test_a_question_without_a_label_is_a_problem_where_there_are_outputs(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, "dev", [entry("2"), entry("3")], {"2": "travel"}))
    assert problem == "dev_questions.json, user '3', query '3': query without a label"


def test_train_questions_without_their_outputs_file_are_one_problem(tmp_path: Path) -> None:
    write(tmp_path, "dev", [entry("2")])
    problems = problems_of(write(tmp_path, "train", [entry("1"), entry("3")]))
    assert problems == ("train_outputs.json: no such file; the labels of train_questions.json belong there",)


def test_outputs_without_questions_are_told_so(tmp_path: Path) -> None:
    (tmp_path / "dev_outputs.json").write_text("{}")
    assert problems_of(tmp_path) == ("*_questions.json is missing beside dev_outputs.json",)


def test_an_unknown_split_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "dev", [entry("2")])
    (problem,) = problems_of(write(tmp_path, "holdout", [entry("3")]))
    assert problem.startswith("holdout_questions.json: unknown split 'holdout'")


def test_a_question_without_id_profile_or_input_has_three_problems(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, "dev", [{"text": "?"}]))
    assert sorted(problem.rsplit(": ", 1)[1] for problem in problems) == [
        "empty history; give the user at least one history item, or leave the user out",
        "missing field 'id'",
        "missing field 'input'",
        "missing field 'profile', the list of history items",
    ]


def test_an_empty_profile_of_a_dev_question_is_a_problem_and_of_a_train_question_not(tmp_path: Path) -> None:
    write(tmp_path, "train", [entry("1", profile=[])], {"1": "travel"})
    (problem,) = problems_of(write(tmp_path, "dev", [entry("2", profile=[])]))
    assert problem.startswith("dev_questions.json, user '2': empty history")
