"""A history as training examples: word for word, in order of time, and nothing that does not exist yet."""

import re
from collections.abc import Sequence
from itertools import product

import pytest
from toys import COLOUR, MOTTO, REMARK

from oppu.errors import ConfigError
from oppu.examples import PLAIN, HistoryIndex, Setting, query_example, query_examples, training_examples
from oppu.prompts import build_prompt, cut_words
from oppu.records import Example, HistoryItem, Query, User
from oppu.retrieval import RETRIEVERS
from oppu.tasks import BUILT_IN, Task
from oppu.tasks.task import template_fields

ANN = User(
    "ann",
    (
        HistoryItem("i1", {"text": "old car", "colour": "red"}, 1.0),
        HistoryItem("i2", {"text": "door of a house", "colour": "blue"}, 2.0),
        HistoryItem("i3", {"text": "loaf of bread", "colour": "red"}, 3.0),
        HistoryItem("i4", {"text": "new car", "colour": "green"}, 4.0),
    ),
    (Query("q1", "Which colour? thing: my car", {"text": "my car"}, gold="red", time=9.0),),
)
PROFILE = "Ann likes red."


def test_phi_t_is_the_task_with_the_question_alone() -> None:
    assert training_examples(COLOUR, ANN) == [
        Example("ann", "i1", "thing: old car colour:", "red"),
        Example("ann", "i2", "thing: door of a house colour:", "blue"),
        Example("ann", "i3", "thing: loaf of bread colour:", "red"),
        Example("ann", "i4", "thing: new car colour:", "green"),
    ]
    assert query_examples(COLOUR, ANN) == [Example("ann", "q1", "thing: my car colour:", "red")]


def test_phi_r_has_earlier_items_with_their_answers_best_first_above_the_question() -> None:
    first, second, _, fourth = training_examples(COLOUR, ANN, Setting(k=2))
    assert first == Example("ann", "i1", "thing: old car colour:", "red")
    assert second == Example("ann", "i2", "thing: old car colour: red\nthing: door of a house colour:", "blue", ("i1",))
    assert fourth == Example(
        "ann",
        "i4",
        "thing: old car colour: red\nthing: loaf of bread colour: red\nthing: new car colour:",
        "green",
        ("i1", "i3"),
    )
    (question,) = query_examples(COLOUR, ANN, Setting(k=1))
    assert question.prompt == "thing: new car colour: green\nthing: my car colour:"
    assert question.retrieved == ("i4",)


def test_phi_p_has_the_profile_above_everything() -> None:
    setting = Setting(k=1, profile=True)
    first, second, *_ = training_examples(COLOUR, ANN, setting, PROFILE)
    assert first.prompt == "Ann likes red.\nthing: old car colour:"
    assert second.prompt == "Ann likes red.\nthing: old car colour: red\nthing: door of a house colour:"
    (question,) = query_examples(COLOUR, ANN, Setting(profile=True), PROFILE)
    assert question.prompt == "Ann likes red.\nthing: my car colour:"


def test_a_profile_is_shown_only_where_the_setting_says_so() -> None:
    assert training_examples(COLOUR, ANN, PLAIN, PROFILE) == training_examples(COLOUR, ANN)
    assert query_examples(COLOUR, ANN, Setting(k=1), PROFILE) == query_examples(COLOUR, ANN, Setting(k=1))
    assert training_examples(COLOUR, ANN, Setting(profile=True), None) == training_examples(COLOUR, ANN)


def test_a_built_in_task_reads_as_appendix_i_has_it() -> None:
    item = HistoryItem("1", {"text": "Great pan.", "score": "5"}, 0.0)
    prompt = build_prompt(BUILT_IN["product_rating"], {"text": "Bad lid."}, [item], "Is generous.")
    assert prompt == (
        "Is generous.\n"
        "review: Great pan. score: 5\n"
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation.\n"
        "review: Bad lid. score:"
    )


def test_long_fields_are_cut_each_to_its_own_limit() -> None:
    task = COLOUR.model_copy(update={"max_item_words": 4, "max_shown_words": 2})
    long = User(
        "u",
        (
            HistoryItem("a", {"text": "one two three four five", "colour": "red"}, 0.0),
            HistoryItem("b", {"text": "one six seven eight nine", "colour": "blue"}, 1.0),
        ),
        (Query("q", "", {"text": "one b c d e f"}),),
    )
    assert [e.prompt for e in training_examples(task, long, Setting(k=1))] == [
        "thing: one two three four colour:",
        "thing: one two colour: red\nthing: one six seven eight colour:",
    ]
    (question,) = query_examples(task, long, Setting(k=1, retriever="recent"))
    assert question.prompt == "thing: one six colour: blue\nthing: one b c d colour:"


def test_the_papers_limits_are_768_words_and_368_for_what_is_retrieved() -> None:
    assert {(task.max_item_words, task.max_shown_words) for task in BUILT_IN.values()} == {(768, 368)}


def test_a_text_within_the_limit_keeps_its_white_space() -> None:
    assert cut_words(" a  b\nc ", 3) == " a  b\nc "
    assert cut_words(" a  b\nc ", 2) == "a b"


def test_only_the_newest_items_are_trained_on_and_older_ones_are_still_found() -> None:
    assert [e.item_id for e in training_examples(COLOUR, ANN, newest=2)] == ["i3", "i4"]
    assert [e.item_id for e in training_examples(COLOUR, ANN, newest=9)] == ["i1", "i2", "i3", "i4"]
    (newest,) = training_examples(COLOUR, ANN, Setting(k=1), newest=1)
    assert newest.retrieved == ("i1",)


def test_a_user_without_a_history_has_no_training_examples_and_plain_questions() -> None:
    nobody = User("nobody", (), ANN.queries)
    assert training_examples(COLOUR, nobody, Setting(k=2)) == []
    assert [e.prompt for e in query_examples(COLOUR, nobody, Setting(k=2))] == ["thing: my car colour:"]


def test_a_question_without_a_time_comes_after_the_whole_history_and_a_dated_one_does_not() -> None:
    index = HistoryIndex(COLOUR, ANN.history, Setting(k=9, retriever="recent"))
    fields = {"text": "my car"}
    assert query_example(index, "ann", Query("q", "", fields)).retrieved == ("i4", "i3", "i2", "i1")
    assert query_example(index, "ann", Query("q", "", fields, time=3.0)).retrieved == ("i2", "i1")


# no leak


def words_of(user: str, place: int, task: Task) -> dict[str, str]:
    """An item's fields, each with a word of its own: user, item and field."""
    fields = sorted(set().union(*(template_fields(form.prompt + form.answer + form.shown) for form in task.history)))
    return {name: f"common {user}x{place}x{name.replace('_', '')}" for name in fields}


def marked_user(name: str, task: Task, times: Sequence[float]) -> User:
    history = tuple(HistoryItem(f"{name}{n}", words_of(name, n, task), t) for n, t in enumerate(times))
    return User(name, history)


TASKS = [*BUILT_IN.values(), COLOUR, MOTTO, REMARK]
TIMES = {"each later": (0.0, 1.0, 2.0, 3.0, 4.0), "two at a time": (0.0, 1.0, 1.0, 1.0, 2.0), "all at once": (5.0,) * 4}


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_prompt_holds_a_word_of_a_later_item_of_its_own_answer_or_of_another_user(task: Task, when: str) -> None:
    users = [marked_user(name, task, TIMES[when]) for name in ("ann", "bob")]
    for user, k, retriever in product(users, (1, 3, 99), RETRIEVERS):
        examples = training_examples(task, user, Setting(k=k, retriever=retriever, profile=True), f"of {user.id}")
        for item, example in zip(user.history, examples, strict=True):
            seen = {(name, int(place)) for name, place in re.findall(r"(ann|bob)x(\d+)x", example.prompt)}
            earlier = {(user.id, n) for n, other in enumerate(user.history) if other.time < item.time}
            own = (user.id, int(item.id.removeprefix(user.id)))
            assert seen - {own} <= earlier
            assert len(seen - {own}) == min(k, len(earlier))
            form = task.form_for(item.fields)
            assert form is not None
            for name in form.answered:
                assert item.fields[name].split()[1] not in example.prompt
                assert item.fields[name].split()[1] in str(example.answer)


def test_the_first_item_and_those_of_its_time_have_no_context() -> None:
    user = marked_user("ann", COLOUR, (1.0, 1.0, 2.0))
    first, second, third = training_examples(COLOUR, user, Setting(k=5))
    assert (first.retrieved, second.retrieved) == ((), ())
    assert set(third.retrieved) == {"ann0", "ann1"}


@pytest.mark.parametrize("answer", ["{motto}", "is: {motto}", "{motto} by {writer}"])
def test_an_items_own_answer_does_not_choose_what_is_retrieved_for_it(answer: str) -> None:
    form = MOTTO.history[0].model_copy(update={"answer": answer})
    task = MOTTO.model_copy(update={"history": (form,), "search_fields": ("text", "motto", "writer")})

    def retrieved(motto: str, writer: str) -> tuple[str, ...]:
        older = [
            HistoryItem(str(n), {"text": text, "motto": text, "writer": text}, float(n))
            for n, text in enumerate(("apples", "plums", "pears", "kiwis"))
        ]
        item = HistoryItem("own", {"text": "plums", "motto": motto, "writer": writer}, 9.0)
        return training_examples(task, User("u", (*older, item)), Setting(k=1))[-1].retrieved

    hidden_writer = "{writer}" in answer
    assert retrieved("kiwis kiwis", "kiwis" if hidden_writer else "plums") == ("1",)
    assert retrieved("pears pears", "pears" if hidden_writer else "plums") == ("1",)


def test_an_item_is_found_by_the_answer_that_it_had() -> None:
    task = MOTTO.model_copy(update={"search_fields": ("text", "motto")})
    older = [
        HistoryItem(str(n), {"text": "day", "motto": motto}, float(n))
        for n, motto in enumerate(("apples", "plums", "pears"))
    ]
    user = User("u", (*older, HistoryItem("own", {"text": "plums", "motto": "none"}, 9.0)))
    assert training_examples(task, user, Setting(k=1))[-1].retrieved == ("1",)


# histories without the task's answer


def test_tweets_train_with_an_empty_prompt_and_retrieved_ones_stand_above() -> None:
    user = User(
        "u",
        (HistoryItem("1", {"text": "late again"}, 1.0), HistoryItem("2", {"text": "so late"}, 2.0)),
        (Query("q", "", {"text": "The train is late."}),),
    )
    assert training_examples(REMARK, user) == [
        Example("u", "1", "", "late again"),
        Example("u", "2", "", "so late"),
    ]
    assert training_examples(REMARK, user, Setting(k=1)) == [
        Example("u", "1", "", "late again"),
        Example("u", "2", "remark: late again\n", "so late", ("1",)),
    ]
    (question,) = query_examples(REMARK, user, Setting(k=1))
    assert question.prompt == "remark: so late\ntext: The train is late. remark:"


def test_a_citation_without_a_reference_trains_on_its_title() -> None:
    user = User(
        "u",
        (
            HistoryItem("1", {"title": "Trees", "abstract": "Of trees."}, 1.0),
            HistoryItem("2", {"title": "Roots", "abstract": "Of trees.", "citation": "Trees"}, 2.0),
        ),
    )
    assert training_examples(BUILT_IN["citation"], user, Setting(k=1)) == [
        Example("u", "1", "", "paper title: Trees"),
        Example("u", "2", "paper title: Trees\npaper title: Roots\nreference:", "Trees", ("1",)),
    ]


# settings


def test_a_label_that_stands_for_a_text_is_learnt_and_asked_as_that_text() -> None:
    choice = COLOUR.model_copy(update={"labels": ("A", "B"), "options": ("{first}", "a {second} one")})
    fields = {"text": "box", "first": "red", "second": "blue"}
    (asked,) = query_examples(choice, User("u", (), (Query("q", "box?", fields, "B"),)))
    assert asked.options == (("A", "red"), ("B", "a blue one"))
    assert (asked.prompt, asked.answer, asked.written) == ("thing: box colour:", "B", "a blue one")
    (plain,) = query_examples(COLOUR, User("u", (), (Query("q", "box?", fields, "red"),)))
    assert (plain.options, plain.answer, plain.written) == ((), "red", "red")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (Setting(), "plain"),
        (Setting(profile=True), "profile"),
        (Setting(k=1), "bm25-k1"),
        (Setting(k=12, retriever="random", profile=True), "random-k12-profile"),
    ],
)
def test_a_setting_is_found_again_by_its_name(setting: Setting, name: str) -> None:
    assert setting.name == name
    assert Setting.named(name) == setting


@pytest.mark.parametrize("name", ["", "k0", "bm25-k0", "bm25-k01", "bm25-k1-", "bm25-k-1", "-profile", "plain-profile"])
def test_a_name_that_no_setting_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is no setting's name; use for example plain"):
        Setting.named(name)


def test_a_setting_with_fewer_than_no_items_or_an_unknown_retriever_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"k is -1, .*; use k >= 0"):
        Setting(k=-1)
    with pytest.raises(ConfigError, match="unknown retriever 'bm26'; use one of: bm25, random, recent"):
        Setting(retriever="bm26")
    with pytest.raises(ConfigError, match="unknown retriever 'bm26'"):
        Setting.named("bm26-k1")
