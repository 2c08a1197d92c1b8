"""The OPPU release's three files, and every check that all formats share."""

import json
from pathlib import Path
from typing import Any

import pytest

from oppu.data import check, read_dataset
from oppu.errors import DataError
from oppu.tasks import BUILT_IN

NEWS = BUILT_IN["news_categorize"]
Json = dict[str, Any]


def question(text: str) -> str:
    return f"Which category? categories: [travel, politics] article: {text}"


def item(identifier: str, date: str | None = "2018-03-02", **fields: Any) -> Json:
    dated = {} if date is None else {"date": date}
    return {"id": identifier, "text": f"text {identifier}", "title": "t", "category": "politics", **dated, **fields}


def user(identifier: str, profile: list[Json], *query_ids: str, **query_fields: Any) -> Json:
    queries = [{"id": q, "input": question(f"asked {q}"), **query_fields} for q in query_ids]
    return {"user_id": identifier, "profile": profile, "query": queries}


def write(folder: Path, users: Any, labels: Json | None = None, others: Any = None) -> Path:
    """A release folder; labels by query id, None for no label file."""
    (folder / "user_top_100_history.json").write_text(json.dumps(users))
    if labels is not None:
        golds = [{"id": identifier, "output": output} for identifier, output in labels.items()]
        (folder / "user_top_100_history_label.json").write_text(json.dumps({"task": "LaMP_2N", "golds": golds}))
    if others is not None:
        (folder / "user_others.json").write_text(json.dumps(others))
    return folder


def problems_of(path: Path, task_name: str = "news_categorize") -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_dataset(path, BUILT_IN[task_name])
    return caught.value.problems


def only_problem(path: Path, task_name: str = "news_categorize") -> str:
    problems = problems_of(path, task_name)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_release_gives_test_users_with_labels_and_base_users_with_inline_golds(tmp_path: Path) -> None:
    others = [user("b", [], "q2", gold="travel")]
    dataset = read_dataset(write(tmp_path, [user("u", [item("1")], "q1")], {"q1": "politics"}, others), NEWS)
    (personal,), (base,) = dataset.users, dataset.base_users
    assert personal.id == "u"
    assert personal.history[0].fields == {"text": "text 1", "title": "t", "category": "politics"}
    assert (personal.queries[0].gold, personal.queries[0].time) == ("politics", None)
    assert personal.queries[0].input == question("asked q1")
    assert personal.queries[0].fields == {"text": "asked q1"}
    assert (base.history, base.queries[0].gold) == ((), "travel")


def test_without_a_label_file_golds_are_unknown(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, [user("u", [item("1")], "q1")]), NEWS)
    assert dataset.users[0].queries[0].gold is None
    assert dataset.base_users == ()


def test_the_users_file_itself_may_be_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")], "q1")])
    assert read_dataset(folder / "user_top_100_history.json", NEWS) == read_dataset(folder, NEWS)


def test_a_history_is_sorted_oldest_first_and_equal_dates_keep_their_order(tmp_path: Path) -> None:
    profile = [item("new", "2019"), item("a", "2018-03"), item("old", "2001-01-01"), item("b", "2018-03-01T00:00:00Z")]
    history = read_dataset(write(tmp_path, [user("u", profile)]), NEWS).users[0].history
    assert [i.id for i in history] == ["old", "a", "b", "new"]


def test_a_history_without_dates_takes_its_positions_as_times(tmp_path: Path) -> None:
    profile = [item("z", None), item("a", None)]
    history = read_dataset(write(tmp_path, [user("u", profile)]), NEWS).users[0].history
    assert [(i.id, i.time) for i in history] == [("z", 0.0), ("a", 1.0)]


def test_whole_numbers_are_taken_as_text(tmp_path: Path) -> None:
    review = {"id": 7, "text": "good", "score": 5, "date": 2018}
    users = [{"user_id": 3, "profile": [review], "query": [{"id": 9, "input": "without explanation. review: ok"}]}]
    read = read_dataset(write(tmp_path, users, {"9": 4}), BUILT_IN["product_rating"]).users[0]
    assert (read.id, read.history[0].id, read.history[0].fields["score"]) == ("3", "7", "5")
    assert (read.queries[0].id, read.queries[0].gold) == ("9", "4")


def test_an_empty_text_in_a_field_that_no_template_uses_is_fine(tmp_path: Path) -> None:
    paper = {"id": "p", "title": "A", "abstract": "", "citation": "B", "date": "1985-07"}
    users = [{"user_id": "u", "profile": [paper], "query": []}]
    read = read_dataset(write(tmp_path, users), BUILT_IN["citation"]).users[0]
    assert read.history[0].fields["abstract"] == ""


def test_the_answers_of_a_citation_history_are_no_labels_and_its_golds_are(tmp_path: Path) -> None:
    text = 'researcher with title "A", which reference is related? Answer [1] or [2]. [1]: "B" [2]: "C"'
    users = [
        {"user_id": "u", "profile": [{"id": "p", "title": "A", "citation": "B"}], "query": [{"id": "q", "input": text}]}
    ]
    assert "'B' is not a label" in only_problem(write(tmp_path, users, {"q": "B"}), "citation")


def test_a_missing_field_is_named_with_file_user_and_item(tmp_path: Path) -> None:
    incomplete = item("1")
    del incomplete["category"]
    problem = only_problem(write(tmp_path, [user("u", [incomplete])]))
    assert problem == "user_top_100_history.json, user 'u', item '1': missing field 'category'"


def test_an_empty_required_field_is_a_problem(tmp_path: Path) -> None:
    assert only_problem(write(tmp_path, [user("u", [item("1", text=" ")])])).endswith("item '1': empty field 'text'")


def test_a_date_that_does_not_parse_is_a_problem(tmp_path: Path) -> None:
    problem = only_problem(write(tmp_path, [user("u", [item("1", "2nd of March")])]))
    assert "item '1': '2nd of March' is not a date; write it as 2018-03-02" in problem


def test_every_item_without_a_date_beside_dated_ones_is_a_problem(tmp_path: Path) -> None:
    problem = only_problem(write(tmp_path, [user("u", [item("1"), item("2", None)])]))
    assert "item '2': has no date, but other items of the user do" in problem


def test_an_empty_history_says_what_to_do(tmp_path: Path) -> None:
    problem = only_problem(write(tmp_path, [user("u", [], "q")]))
    assert "user 'u': empty history; give the user at least one history item, or leave the user out" in problem


def test_an_item_repeated_to_the_letter_is_kept_once_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1"), item("1"), item("2")])])
    checked = check(folder, NEWS)
    assert [i.id for i in checked.dataset.users[0].history] == ["1", "2"]
    assert checked.notes == ("history items that repeat another one to the letter, kept once: 1",)


def test_the_notes_go_to_the_log_when_only_the_users_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_dataset(write(tmp_path, [user("u", [item("1"), item("1")])]), NEWS)
    assert "kept once: 1" in caplog.text


def test_an_item_id_with_two_contents_is_a_problem(tmp_path: Path) -> None:
    problem = only_problem(write(tmp_path, [user("u", [item("1"), item("1", text="another")])]))
    assert "item '1': duplicate item id with another content" in problem


def test_an_item_id_with_two_dates_is_a_problem(tmp_path: Path) -> None:
    assert "duplicate item id" in only_problem(write(tmp_path, [user("u", [item("1"), item("1", "2020")])]))


def test_two_users_may_have_the_same_item_ids(tmp_path: Path) -> None:
    assert len(read_dataset(write(tmp_path, [user("u", [item("1")]), user("v", [item("1")])]), NEWS).users) == 2


def test_a_duplicate_user_is_a_problem(tmp_path: Path) -> None:
    assert "user 'u': duplicate user" in only_problem(write(tmp_path, [user("u", [item("1")]), user("u", [item("2")])]))


def test_a_duplicate_query_id_is_a_problem_across_users(tmp_path: Path) -> None:
    users = [user("u", [item("1")], "q"), user("v", [item("1")], "q")]
    assert "user 'v', query 'q': duplicate query id" in only_problem(write(tmp_path, users))


def test_a_user_who_is_also_a_base_user_is_a_problem(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")])], None, [user("u", [], "q", gold="travel")])
    assert "user 'u': is a base user too" in only_problem(folder)


def test_a_query_without_a_label_is_a_problem_where_there_is_a_label_file(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")], "q1", "q2")], {"q1": "politics"})
    assert only_problem(folder).endswith("user 'u', query 'q2': query without a label")


def test_a_base_query_without_a_gold_is_a_problem(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")])], None, [user("b", [], "q")])
    assert only_problem(folder) == "user_others.json, user 'b', query 'q': query without a label"


def test_an_empty_label_is_a_problem(tmp_path: Path) -> None:
    assert only_problem(write(tmp_path, [user("u", [item("1")], "q")], {"q": ""})).endswith("query 'q': empty label")


def test_a_duplicate_label_is_a_problem(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")], "q")])
    golds = [{"id": "q", "output": "travel"}, {"id": "q", "output": "politics"}]
    (folder / "user_top_100_history_label.json").write_text(json.dumps({"task": "LaMP_2N", "golds": golds}))
    assert only_problem(folder) == "user_top_100_history_label.json, query 'q': duplicate label"


def test_a_query_of_another_task_is_a_problem(tmp_path: Path) -> None:
    users = [{"user_id": "u", "profile": [item("1")], "query": [{"id": "q", "input": "Generate a headline"}]}]
    problem = only_problem(write(tmp_path, users))
    assert problem.endswith("query 'q': the query's text does not match the markers of task news_categorize")


def test_data_of_another_task_are_one_problem_for_each_file(tmp_path: Path) -> None:
    films = [{"id": str(i), "description": "d", "tag": "comedy"} for i in range(11)]
    users = [{"user_id": "u", "profile": films, "query": []}]
    assert only_problem(write(tmp_path, users)) == (
        "user_top_100_history.json: none of the 11 history items has the fields of task news_categorize; "
        "are these another task's data?"
    )


def test_queries_of_another_task_are_one_problem_even_where_the_items_fit(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")], *(f"q{i}" for i in range(11)))])
    assert "none of the 11 queries has the markers of task news_headline" in only_problem(folder, "news_headline")


def test_one_fitting_query_among_many_has_every_other_named(tmp_path: Path) -> None:
    asked = [{"id": str(i), "input": "Generate a headline"} for i in range(11)]
    users = [{"user_id": "u", "profile": [item("1")], "query": [{"id": "q", "input": question("x")}, *asked]}]
    assert len(problems_of(write(tmp_path, users))) == 11


def test_a_query_with_nothing_behind_its_marker_is_a_problem(tmp_path: Path) -> None:
    users = [{"user_id": "u", "profile": [item("1")], "query": [{"id": "q", "input": question(" ")}]}]
    assert only_problem(write(tmp_path, users)).endswith("query 'q': empty field 'text'")


def test_unknown_labels_of_items_and_queries_are_problems(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1", category="gossip")], "q")], {"q": "Politics"})
    of_item, of_query = problems_of(folder)
    assert "item '1': 'gossip' is not a label of task news_categorize; use one of: travel, " in of_item
    assert "query 'q': 'Politics' is not a label" in of_query


def test_a_rating_off_the_scale_is_a_problem(tmp_path: Path) -> None:
    users = [{"user_id": "u", "profile": [{"id": "1", "text": "good", "score": "6"}], "query": []}]
    assert "'6' is not a rating of task product_rating" in only_problem(write(tmp_path, users), "product_rating")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), (True, "true or false"), (4.5, "a fractional number"), (["a"], "a list"), ({}, "an object")],
)
def test_a_value_that_is_not_text_is_one_problem(tmp_path: Path, value: object, kind: str) -> None:
    problem = only_problem(write(tmp_path, [user("u", [item("1", category=value)])]))
    assert problem.endswith(f"item '1': field 'category' is {kind}; write it as a string")


def test_half_of_a_surrogate_pair_is_a_problem(tmp_path: Path) -> None:
    assert "surrogate" in only_problem(write(tmp_path, [user("u", [item("1", text="\ud83d")])]))


def test_an_item_without_an_id_is_named_by_its_number(tmp_path: Path) -> None:
    nameless = item("2")
    del nameless["id"]
    problem = only_problem(write(tmp_path, [user("u", [item("1"), nameless])]))
    assert problem == "user_top_100_history.json, user 'u', item no. 2: missing field 'id'"


def test_a_user_without_an_id_is_named_by_its_number(tmp_path: Path) -> None:
    assert only_problem(write(tmp_path, [{"profile": [item("1")], "query": []}])) == (
        "user_top_100_history.json, user 'no. 1': missing field 'user_id'"
    )


def test_malformed_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "user_top_100_history.json").write_text('[\n  {"user_id": "u",\n   oops}\n]')
    assert only_problem(tmp_path).startswith("user_top_100_history.json, line 3: malformed JSON")


def test_a_malformed_label_file_is_one_problem_and_not_one_for_every_query(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")], "q1", "q2")])
    (folder / "user_top_100_history_label.json").write_text("{")
    assert only_problem(folder).startswith("user_top_100_history_label.json, line 1: malformed JSON")


def test_a_file_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "user_top_100_history.json").write_bytes(b'[{"user_id": "\xff"}]')
    assert "is not UTF-8 text (byte 14)" in only_problem(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"users": []}, "user_top_100_history.json: the file is not a list"),
        (["u"], "user_top_100_history.json: the file: entry no. 1 is not an object"),
        (None, "user_top_100_history.json: holds null instead of data"),
        ([], "no users in it"),
        (
            [{"user_id": "u", "profile": [item("1")]}],
            "user_top_100_history.json, user 'u': missing field 'query', the list of questions",
        ),
    ],
)
def test_a_wrong_shape_is_a_problem(tmp_path: Path, content: object, problem: str) -> None:
    assert only_problem(write(tmp_path, content)) == problem


def test_a_label_file_of_the_wrong_shape_is_a_problem(tmp_path: Path) -> None:
    folder = write(tmp_path, [user("u", [item("1")], "q")])
    (folder / "user_top_100_history_label.json").write_text('[{"id": "q"}]')
    assert "wrong shape; expected" in only_problem(folder)


def test_all_problems_of_all_files_come_at_once_and_nothing_is_loaded(tmp_path: Path) -> None:
    users = [user("good", [item("1")], "q1"), user("bad", [item("1", "soon"), item("2", text="")], "q2")]
    problems = problems_of(write(tmp_path, users, {"q1": "travel"}, [user("b", [item("9", category="?")], "q3")]))
    assert len(problems) == 5
    assert sum("user 'bad'" in problem for problem in problems) == 3
    assert sum(problem.startswith("user_others.json, user 'b'") for problem in problems) == 2


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder$"):
        read_dataset(tmp_path / "nowhere", NEWS)


def test_a_folder_without_data_says_what_it_should_hold(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no data in this folder; it should hold user_top_100_history\.json"):
        read_dataset(tmp_path, NEWS)


def test_a_label_file_without_its_users_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "user_others.json").write_text("[]")
    assert only_problem(tmp_path) == "user_top_100_history.json is missing beside user_others.json"


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text("x")
    assert only_problem(tmp_path / "data.parquet") == "not a data file that oppu knows"
