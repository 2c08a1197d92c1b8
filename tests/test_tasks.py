"""Tasks are values: built in, or from a TOML file with the same standing."""

import time
from pathlib import Path

import pytest
from toys import COLOUR

from oppu.data.checks import answer_field
from oppu.errors import ConfigError
from oppu.tasks import BUILT_IN, HistoryForm, Task, find_task, task_from_toml, task_to_toml
from oppu.tasks.plain import plain_words

QUESTIONS = {
    "citation": (
        'For an author who has written the paper with the title "Trees in "quotes" and more", which reference is '
        "related? Just answer with [1] or [2] without explanation. "
        '[1]: "On leaves: [2] of them" [2]: "Roots"',
        {"title": 'Trees in "quotes" and more', "option1": "On leaves: [2] of them", "option2": "Roots"},
    ),
    "news_categorize": (
        "Which category does this article relate to among the following categories? Just answer with the category "
        "name without further explanation. categories: [travel, education, crime] article: A train\nwas late. [Photo]",
        {"text": "A train\nwas late. [Photo]"},
    ),
    "movie_tagging": (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
        "explanation. tags: [sci-fi, comedy] description: A clown has a description: sad.",
        {"description": "A clown has a description: sad."},
    ),
    "product_rating": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: It broke. score: none",
        {"text": "It broke. score: none"},
    ),
    "news_headline": (
        "Generate a headline for the following article: A train was late.",
        {"text": "A train was late."},
    ),
    "scholarly_title": (
        "Generate a title for the following abstract of a paper: We study trains.\nThey are late.",
        {"abstract": "We study trains.\nThey are late."},
    ),
    "tweet_paraphrase": (
        "Paraphrase the following tweet without any explanation before or after it: so late again",
        {"text": "so late again"},
    ),
}


def toml(task: Task = COLOUR, **lines: str) -> str:
    """A task file with some top-level lines replaced or added; an empty one is left out."""
    head, rest = task_to_toml(task).split("\n\n", 1)
    keys = dict(line.split(" = ", 1) for line in head.splitlines()) | lines
    return "\n".join(f"{key} = {value}" for key, value in keys.items() if value) + "\n\n" + rest


def refusal(tmp_path: Path, text: str) -> str:
    """The error's line for a task file of this text, after its path."""
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        task_from_toml(file)
    line = caught.value.line()
    assert line.startswith(f"{file}: ")
    assert "\n" not in line
    return line.removeprefix(f"{file}: ")


def test_the_seven_tasks_of_the_paper_are_built_in() -> None:
    ids = ["LaMP_1", "LaMP_2N", "LaMP_2M", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_7"]
    assert [task.lamp_id for task in BUILT_IN.values()] == ids
    assert [len(task.labels) for task in BUILT_IN.values()] == [2, 15, 15, 5, 0, 0, 0]
    assert QUESTIONS.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_in_the_benchmarks_words_is_cut_into_its_parts(name: str) -> None:
    question, parts = QUESTIONS[name]
    assert BUILT_IN[name].parse_query(question) == parts
    assert BUILT_IN[name].parse_query(f"Hello. {parts}") is None


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_parts_of_a_question_fill_its_prompt(name: str) -> None:
    _, parts = QUESTIONS[name]
    prompt = BUILT_IN[name].prompt.format_map(parts)
    assert all(part in prompt for part in parts.values())


def test_table_4_stands_with_the_tasks() -> None:
    numbers = {name: (t.paper.epochs, t.paper.weight_decay, t.paper.batch_size) for name, t in BUILT_IN.items()}
    assert numbers == {
        "citation": (3, 1e-2, 16),
        "news_categorize": (3, 1e-2, 16),
        "movie_tagging": (3, 1e-2, 4),
        "product_rating": (3, 1e-2, 3),
        "news_headline": (2, 1e-1, 8),
        "scholarly_title": (2, 1e-1, 4),
        "tweet_paraphrase": (2, 1e-1, 8),
    }
    assert {(t.paper.rank, t.paper.learning_rate) for t in BUILT_IN.values()} == {(8, 1e-5)}


@pytest.mark.parametrize("task", [*BUILT_IN.values(), COLOUR], ids=lambda task: task.name)
def test_a_task_comes_back_from_its_toml_file(task: Task, tmp_path: Path) -> None:
    file = tmp_path / "task.toml"
    file.write_text(task_to_toml(task), encoding="utf-8")
    assert task_from_toml(file) == task


def test_a_task_is_found_by_name_by_lamp_id_and_by_path(tmp_path: Path) -> None:
    movies = BUILT_IN["movie_tagging"]
    assert [find_task(name) for name in ("movie_tagging", "LaMP_2M", "lamp-2m")] == [movies] * 3
    file = tmp_path / "mine.toml"
    file.write_text(toml(), encoding="utf-8")
    assert find_task(str(file)) == COLOUR
    with pytest.raises(ConfigError, match=r"unknown task 'movies'; use a path to a \.toml file or one of: citation, "):
        find_task("movies")


def test_an_unknown_key_is_named_with_the_file(tmp_path: Path) -> None:
    assert refusal(tmp_path, toml(labelz='["a"]')).startswith("unknown key 'labelz'; see `oppu tasks show NAME`")
    in_form = toml().replace("shown =", "displayed =")
    assert refusal(tmp_path, in_form).startswith("history.0.shown: Field required; unknown key 'history.0.displayed'; ")


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    line = refusal(tmp_path, toml(prompt="", kind='"word"', max_item_words="0"))
    assert "prompt: Field required" in line
    assert "kind: Input should be 'label', 'rating' or 'text'" in line
    assert "max_item_words: Input should be greater than 0" in line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("query_pattern", '"(text"', "query_pattern: not a regular expression: missing ), unterminated subpattern"),
        ("query_pattern", '"text (.*)"', "query_pattern: needs at least one named group, such as (?P<text>.*)"),
        ("kind", '"text"', "task: a text task has no labels; use kind = 'label' or drop them"),
        ("kind", '"rating"', "task: the labels of a rating task must be numbers"),
        ("labels", '["one"]', "task: a label task needs at least two labels"),
        ("labels", '["one", "one"]', "task: labels must differ from each other"),
        ("options", '["{a}"]', "task: options are the texts of a label task's labels, one for each label"),
        ("options_premise", '"so:"', "task: options_premise is a prompt without fields, of a task that has options"),
        ("prompt", '"What?"', "task: the prompt names no field of the question, such as {input}"),
        ("prompt", '"What {text"', "prompt: not a template: expected '}' before end of string; write a brace that"),
        ("prompt", '"What {}"', "prompt: '' in braces is no field's name; write a brace that"),
        ("prompt", '"What {text.upper}"', "prompt: 'text.upper' in braces is no field's name"),
        ("prompt", '"What {text!r}"', "prompt: 'text' in braces is no field's name"),
        ("name", '"My task"', "name: String should match pattern"),
        ("search_fields", "[]", "search_fields: Tuple should have at least 1 item"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(tmp_path: Path, key: str, value: str, words: str) -> None:
    assert refusal(tmp_path, toml(**{key: value})).startswith(words)


def test_a_file_that_is_no_toml_or_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "name = ").startswith("not valid TOML: Invalid value (at end of document)")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: not valid TOML: 'utf-8' codec"):
        find_task(str(tmp_path / "binary.toml"))
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the task file: No such file or directory"):
        find_task(str(tmp_path / "none.toml"))


def test_braces_that_are_no_fields_are_written_twice(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml(prompt='"JSON {{a}} of {text}:"'), encoding="utf-8")
    assert find_task(str(file)).prompt.format_map({"text": "x"}) == "JSON {a} of x:"


def test_a_question_without_markers_is_the_prompts_one_field() -> None:
    assert COLOUR.fields_of("Which colour? thing: my car") == {"text": "my car"}
    assert COLOUR.fields_of(" my car ") == {"text": "my car"}
    with pytest.raises(ConfigError, match="task citation has the parts option1, option2, title, which are not found"):
        BUILT_IN["citation"].fields_of("Which one?")


def test_a_part_that_a_question_does_not_have_is_empty() -> None:
    task = COLOUR.model_copy(update={"query_pattern": r"^(?P<text>\w+)(?: in (?P<place>\w+))?$"})
    assert task.parse_query("car") == {"text": "car", "place": ""}


def test_an_item_takes_the_first_form_that_its_fields_complete() -> None:
    citation = BUILT_IN["citation"]
    with_citation, without = citation.history
    assert citation.form_for({"title": "t", "citation": "c", "abstract": "a"}) == with_citation
    assert citation.form_for({"title": "t", "abstract": "a"}) == without
    assert citation.form_for({"abstract": "a"}) is None
    assert with_citation.fields == {"title", "citation"}


def test_search_sees_the_search_fields_that_are_there() -> None:
    citation = BUILT_IN["citation"]
    assert citation.search_text({"title": "t", "abstract": "a", "citation": "c"}) == "t a"
    assert citation.search_text({"title": "t"}) == "t"


def test_a_task_may_have_any_template_that_names_its_fields() -> None:
    form = HistoryForm(prompt="{a} {b_2}", answer="{c}", shown="")
    assert form.fields == {"a", "b_2", "c"}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("@bob: SOOO late again!! lol http://t.co/x", "So late again."),
        ("RT @ann I cant wait :D #friday &amp; u?", "I cannot wait friday and you?"),
        ("ewww... Ew", "Ew. ew."),
        ("a new ax) xD great:)", "A new ax) great."),
        ("Now I only need coffee", "Now i only need coffee."),
        ("@bob http://t.co/x", "@bob http://t.co/x"),
    ],
)
def test_plain_words_have_no_marks_of_a_persons_style(text: str, plain: str) -> None:
    assert plain_words(text) == plain


def test_a_form_in_plain_words_shows_its_prompt_nothing_else_of_the_answer() -> None:
    form = HistoryForm(prompt="say: {text}", answer="{text}", shown="{text}", plain=("text",))
    fields = {"text": "@bob LATE!!", "date": "monday"}
    assert form.asking(fields) == {"text": "Late.", "date": "monday"}
    assert (form.asked, form.answered, form.fields) == ({"text"}, {"text"}, {"text"})
    task = COLOUR.model_copy(update={"kind": "text", "labels": (), "history": (form,)})
    assert answer_field(task, form) is None


def test_plain_fields_must_stand_in_the_prompt() -> None:
    with pytest.raises(ValueError, match="plain names colour, which the form's prompt does not show"):
        HistoryForm(prompt="say: {text}", answer="{colour}", shown="{text}", plain=("colour",))


def test_no_citation_question_takes_more_than_linear_time() -> None:
    task = BUILT_IN["citation"]
    marked = 'title "x", which reference is related? [1]: "a" [2]: "b" ' * 250 + "?"
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match="which are not found in the text"):
        task.fields_of(marked)
    assert time.perf_counter() - begun < 2  # with nested wildcards, a quarter of an hour
    quoted = 'The paper with the title "On "quotes"", which reference is related? [1]: "A "b"" [2]: "C"'
    assert task.fields_of(quoted) == {"title": 'On "quotes"', "option1": 'A "b"', "option2": "C"}
