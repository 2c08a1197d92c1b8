"""Rows of one's own, from JSONL and CSV."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oppu.data import check, read_dataset
from oppu.errors import DataError
from oppu.tasks import BUILT_IN, HistoryForm, Task

NEWS = BUILT_IN["news_categorize"]
TWEETS = BUILT_IN["tweet_paraphrase"]
NOTES = Task(
    name="notes",
    title="Notes",
    kind="label",
    labels=("home", "work"),
    prompt="note: {input} folder:",
    history=(HistoryForm(prompt="note: {input} folder:", answer="{output}", shown="{input}: {output}"),),
    search_fields=("input",),
)


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def row(user: str = "u", **more: Any) -> dict[str, Any]:
    return {"user": user, "input": "call mum", "output": "home", **more}


def problems_of(path: Path, task: Task = NOTES) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_dataset(path, task)
    return caught.value.problems


def only_problem(path: Path, task: Task = NOTES) -> str:
    problems = problems_of(path, task)
    assert len(problems) == 1, problems
    return problems[0]


def test_rows_become_users_with_history_and_queries(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "notes.jsonl",
        row(time="2025-01-02", id="b"),
        row("v", time="2025-01-01"),
        row(time="2025-01-01T10:00", id="a", output="work"),
        row(time="2025-01-03", split="query", id="q", input="buy milk"),
        row("held-out", split="base"),
        row("held-out", split="base_query"),
    )
    dataset = read_dataset(path, NOTES)
    first, second = dataset.users
    assert [item.id for item in first.history] == ["a", "b"]
    assert first.history[0].fields == {"input": "call mum", "output": "work"}
    (query,) = first.queries
    assert (query.id, query.input, query.fields, query.gold) == ("q", "buy milk", {"input": "buy milk"}, "home")
    assert query.time is not None
    assert query.time > first.history[-1].time
    assert (second.id, len(second.history), second.queries) == ("v", 1, ())
    (base,) = dataset.base_users
    assert (len(base.history), base.queries[0].gold) == (1, "home")


def test_csv_and_jsonl_of_the_same_rows_give_the_same_users(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text(
        '\ufeffuser,time,id,split,input,output\nu,2025-01-02,,,"call mum,\nnow",home\nu,,,query,"say ""hi""",\n',
        encoding="utf-8",
    )
    path = jsonl(
        tmp_path / "notes.jsonl",
        row(time="2025-01-02", input="call mum,\nnow"),
        {"user": "u", "split": "query", "input": 'say "hi"', "output": None},
    )
    assert read_dataset(tmp_path / "notes.csv", NOTES) == read_dataset(path, NOTES)


def test_a_folder_of_rows_is_one_data_set(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", row(id="2"))
    jsonl(tmp_path / "a.jsonl", row(id="1"))
    (tmp_path / "README.md").write_text("not data")
    (user,) = read_dataset(tmp_path, NOTES).users
    assert [item.id for item in user.history] == ["1", "2"]


def test_a_built_in_task_takes_its_own_field_names(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "news.jsonl",
        {"user": "u", "date": "2018-03-02", "text": "vote", "category": "politics"},
        {"user": "u", "date": "2018-03-03", "text": "sea", "category": "travel", "split": "query"},
    )
    (user,) = read_dataset(path, NEWS).users
    assert user.history[0].fields == {"text": "vote", "category": "politics"}
    assert (user.queries[0].input, user.queries[0].gold) == ("sea", "travel")
    assert user.queries[0].fields == {"text": "sea"}, "the answer is no part of the question"


def test_a_built_in_task_takes_input_and_output_in_place_of_its_names(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "news.jsonl",
        {"user": "u", "input": "vote", "output": "politics"},
        {"user": "u", "input": "sea", "output": "travel", "split": "query"},
    )
    (user,) = read_dataset(path, NEWS).users
    assert user.history[0].fields == {"text": "vote", "category": "politics"}
    assert (user.queries[0].input, user.queries[0].fields["text"], user.queries[0].gold) == ("sea", "sea", "travel")


def test_a_query_in_the_benchmarks_words_is_cut_by_its_markers(tmp_path: Path) -> None:
    words = "Which? categories: [travel] article: sea"
    path = jsonl(
        tmp_path / "news.jsonl",
        {"user": "u", "text": "vote", "category": "politics"},
        {"user": "u", "input": words, "split": "query"},
    )
    (query,) = read_dataset(path, NEWS).users[0].queries
    assert (query.input, query.fields, query.gold) == (words, {"text": "sea"}, None)


def test_a_query_with_several_parts_needs_the_benchmarks_markers(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "papers.jsonl",
        {"user": "u", "title": "A", "citation": "B"},
        {"user": "u", "input": "B or C?", "split": "query"},
    )
    assert "line 2, user 'u': the query's text does not match the markers" in only_problem(path, BUILT_IN["citation"])


def test_a_tweets_text_is_the_question_and_never_its_own_label(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "tweets.jsonl",
        {"user": "u", "text": "omg rain"},
        {"user": "u", "output": "omg sun"},
        {"user": "u", "text": "It snows.", "split": "query"},
    )
    (user,) = read_dataset(path, TWEETS).users
    assert [item.fields for item in user.history] == [{"text": "omg rain"}, {"text": "omg sun"}]
    assert (user.queries[0].input, user.queries[0].gold) == ("It snows.", None)


def test_items_and_queries_without_ids_are_numbered(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(), row(), row(split="query"), row("v"), row("v", split="query"))
    first, second = read_dataset(path, NOTES).users
    assert [item.id for item in first.history] == ["1", "2"]
    assert first.queries[0].id != second.queries[0].id


def test_base_users_alone_are_a_data_set_for_task_adaption(tmp_path: Path) -> None:
    dataset = read_dataset(jsonl(tmp_path / "n.jsonl", row(split="base_query")), NOTES)
    assert (dataset.users, len(dataset.base_users)) == ((), 1)


def test_a_query_older_than_the_history_is_noted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(time="2025-02"), row(time="2025-01", split="query"))
    assert check(path, NOTES).notes == (
        "users with a query older than some of their history; experiments leave the later items out: 1",
    )


def test_a_row_without_a_user_is_named_by_its_line(tmp_path: Path) -> None:
    assert only_problem(jsonl(tmp_path / "n.jsonl", row(), {"input": "x", "output": "home"})) == (
        "n.jsonl, line 2: missing field 'user'"
    )


def test_an_unknown_split_is_a_problem(tmp_path: Path) -> None:
    problem = only_problem(jsonl(tmp_path / "n.jsonl", row(), row(split="test")))
    assert problem == "n.jsonl, line 2, user 'u': unknown split 'test'; use one of: history, query, base, base_query"


def test_a_missing_output_is_named_by_line_user_and_item(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(), {"user": "u", "id": "7", "input": "x"})
    assert only_problem(path) == "n.jsonl, line 2, user 'u', item '7': missing field 'output'"


def test_an_unlabelled_query_among_labelled_ones_is_a_problem(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(), row(split="query"), {"user": "u", "input": "x", "split": "query"})
    assert only_problem(path) == "n.jsonl, line 3, user 'u': query without a label"


def test_a_base_query_needs_a_label(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(), {"user": "b", "input": "x", "split": "base_query"})
    assert only_problem(path).endswith("user 'b': query without a label")


def test_a_user_with_queries_and_no_history_is_a_problem(tmp_path: Path) -> None:
    assert "user 'u': empty history" in only_problem(jsonl(tmp_path / "n.jsonl", row(split="query")))


def test_a_user_in_both_groups_is_a_problem(tmp_path: Path) -> None:
    assert "user 'u': is a base user too" in only_problem(jsonl(tmp_path / "n.jsonl", row(), row(split="base")))


def test_an_item_repeated_to_the_letter_is_a_problem_in_data_of_ones_own(tmp_path: Path) -> None:
    problem = only_problem(jsonl(tmp_path / "n.jsonl", row(id="1"), row(id="1")))
    assert problem.startswith("n.jsonl, line 2, user 'u', item '1': duplicate item id with the same content")


def test_a_duplicate_query_id_is_a_problem(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(), row(split="query", id="q"), row(split="query", id="q"))
    assert "line 3, user 'u', query 'q': duplicate query id" in only_problem(path)


def test_dates_in_some_rows_of_a_user_only_are_a_problem(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", row(time="2025"), row())
    assert "line 2, user 'u': has no date, but other items of the user do" in only_problem(path)


def test_malformed_lines_are_each_named_and_good_ones_do_not_hide_them(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text('{"user": "u"\n\n[1]\n' + json.dumps(row()) + "\n")
    first, second = problems_of(path)
    assert first.startswith("n.jsonl, line 1: malformed JSON")
    assert second == "n.jsonl, line 3: is not a JSON object; write one object per line"


def test_a_csv_row_of_the_wrong_length_is_named_by_the_line_it_starts_on(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text('user,input,output\nu,"two\nlines",home\nu,call mum, now,home\n')
    assert only_problem(path) == "n.csv, line 4: has 4 cells, the header has 3; quote cells with commas"


def test_an_open_quote_in_a_csv_file_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text('user,input,output\nu,call,home\nu,"call,home\n')
    assert only_problem(path).startswith("n.csv, line 3: malformed CSV")


def test_a_column_named_twice_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("user,input,input\nu,a,b\n")
    assert "n.csv, line 1: the header names a column twice" in problems_of(tmp_path / "n.csv")


def test_a_file_without_rows_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("user,input,output\n")
    assert only_problem(tmp_path / "n.csv") == "n.csv: no usable row; every row needs a 'user'"


@given(st.text(), st.text(st.characters(codec="utf-8")))
def test_any_text_is_read_back_or_refused_as_empty(
    tmp_path_factory: pytest.TempPathFactory, user: str, text: str
) -> None:
    path = jsonl(tmp_path_factory.mktemp("rows") / "n.jsonl", row(user, input=text))
    if user.strip() and text.strip():
        (read,) = read_dataset(path, NOTES).users
        assert (read.id, read.history[0].fields["input"]) == (user, text)
    else:
        assert any("empty" in problem for problem in problems_of(path))
