"""Retrieval: what each retriever returns, and that the future does not exist for it."""

import subprocess
import sys
import time
from collections.abc import Sequence

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from oppu.errors import ConfigError, DataError
from oppu.retrieval import BM25, RETRIEVERS, make_retriever

CATS = ("the cat sat", "a dog ran", "the cat ran", "a bird sang", "the cat and the cat", "a fish swam", "old news")

WORDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=12)


def okapi_scores(texts: Sequence[str], query: str) -> np.ndarray:
    """The reference: rank_bm25, built anew on these texts. It cannot be built on texts without a word."""
    tokens = [text.split() for text in texts]
    return np.array(BM25Okapi(tokens).get_scores(query.split())) if any(tokens) else np.zeros(len(texts))


def random_texts(count: int, longest: int, seed: int) -> list[str]:
    """Texts in which few words are frequent and many are rare, as in language."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in rng.zipf(1.4, rng.integers(1, longest)) % 3000) for _ in range(count)]


@given(texts=TEXTS, query=st.lists(WORDS, max_size=6).map(" ".join))
@settings(max_examples=200, deadline=None)
def test_scores_of_every_prefix_are_okapi_built_anew_on_it(texts: list[str], query: str) -> None:
    retriever = BM25(texts, range(len(texts)))
    for count in range(1, len(texts) + 1):
        np.testing.assert_allclose(retriever.scores(query, count), okapi_scores(texts[:count], query), atol=1e-9)


def test_the_ranking_of_every_prefix_is_okapis_with_ties_newer_first() -> None:
    texts = random_texts(count=120, longest=60, seed=1)
    retriever = make_retriever("bm25", texts, range(len(texts)))
    different_scores = 0
    for count, query in enumerate(texts):
        expected = okapi_scores(texts[:count], query).round(9)
        different_scores += len(set(expected.tolist()))
        ranking = sorted(range(count), key=lambda index: (-expected[index], -index))
        assert retriever.top(query, count, before=count) == tuple(ranking)
    assert different_scores > 5000


def test_scores_are_those_of_bm25s_where_no_word_needs_the_floor() -> None:
    texts = ["red fox runs", "blue whale swims deep", "green bird", "black cat sleeps all day", "white swan white"]
    query = "white whale sleeps"
    index = bm25s.BM25(method="robertson", k1=1.5, b=0.75, dtype="float64")
    index.index([text.split() for text in texts], show_progress=False)
    expected = index.get_scores(query.split()) * 2.5  # it leaves out the constant factor k1 + 1
    assert expected.max() > 1
    np.testing.assert_allclose(BM25(texts, range(5)).scores(query, 5), expected, atol=1e-9)


def test_later_texts_change_nothing_before_them() -> None:
    past = ["cat dog", "cat cat bird", "dog bird fish", "fish"]
    future = ["cat " * 50, "dog fish bird cat", "quite other words"]
    alone = BM25(past, range(4))
    with_future = BM25(past + future, range(7))
    assert with_future.top("cat fish", 4, before=4) == alone.top("cat fish", 4)
    assert with_future.scores("cat fish", 4).tolist() == alone.scores("cat fish", 4).tolist()
    assert with_future.scores("cat fish", 7)[:4].tolist() != alone.scores("cat fish", 4).tolist()


def test_a_history_of_1000_items_is_prepared_in_seconds() -> None:
    texts = random_texts(count=1000, longest=200, seed=2)
    start = time.process_time()
    retriever = make_retriever("bm25", texts, range(1000))
    found = [retriever.top(query, 4, before=index) for index, query in enumerate(texts)]
    assert [len(indices) for indices in found[:6]] == [0, 1, 2, 3, 4, 4]
    assert time.process_time() - start < 5  # about half a second; BM25Okapi built anew for each: about twenty


def test_bm25_finds_the_text_that_shares_the_rarest_words() -> None:
    assert make_retriever("bm25", CATS, range(7)).top("a bird in the tree", 1) == (3,)


@pytest.mark.parametrize("name", sorted(RETRIEVERS))
def test_texts_of_equal_time_are_not_earlier_than_each_other(name: str) -> None:
    retriever = make_retriever(name, ["cat one", "cat two", "cat three"], [5.0, 5.0, 6.0])
    assert retriever.top("cat", 3, before=5.0) == ()
    assert sorted(retriever.top("cat", 3, before=6.0)) == [0, 1]


@pytest.mark.parametrize("name", sorted(RETRIEVERS))
def test_texts_out_of_order_are_taken_in_order_of_time(name: str) -> None:
    retriever = make_retriever(name, ["cat late", "cat early", "cat middle"], [30, 10, 20])
    assert retriever.top("cat", 3, before=20) == (1,)
    assert sorted(retriever.top("cat", 3, before=30)) == [1, 2]


def test_bm25_keeps_texts_and_times_together() -> None:
    retriever = make_retriever("bm25", ["cat", "dog", "bird", "fish"], [30, 10, 40, 20])
    assert retriever.top("bird", 1) == (2,)
    assert retriever.top("dog", 1, before=40) == (1,)


@pytest.mark.parametrize("name", sorted(RETRIEVERS))
def test_no_more_texts_are_returned_than_there_are(name: str) -> None:
    retriever = make_retriever(name, CATS, range(7))
    assert sorted(retriever.top("cat", 100)) == list(range(7))
    assert len(retriever.top("cat", 100, before=3)) == 3
    assert retriever.top("cat", 0) == ()


@pytest.mark.parametrize("name", sorted(RETRIEVERS))
def test_nothing_is_found_before_the_first_text_or_without_texts(name: str) -> None:
    assert make_retriever(name, CATS, range(7)).top("cat", 3, before=0) == ()
    assert make_retriever(name, [], []).top("cat", 3) == ()


def test_equal_scores_are_ordered_newest_first() -> None:
    retriever = make_retriever("bm25", ["cat", "x", "cat", "y", "cat", "z", "z", "v", "u"], range(9))
    assert retriever.top("cat", 9) == (4, 2, 0, 8, 7, 6, 5, 3, 1)


def test_sums_that_differ_only_in_their_last_bits_are_ties() -> None:
    # each of the first three texts has the same three contributions, added in another order
    texts = ["p qqq rrrrrr", "q rrr pppppp", "r ppp qqqqqq", "s", "s", "s", "s"]
    texts = [" ".join(text.replace(" ", "")) for text in texts]
    first, second, _ = BM25(texts, range(7)).scores("p q r", 7)[:3]
    assert 0 < first - second < 1e-15
    assert make_retriever("bm25", texts, range(7)).top("p q r", 3) == (2, 1, 0)


@pytest.mark.parametrize("query", ["", "  ", "?!", "unheard-of"])
def test_a_query_without_a_known_word_gets_the_newest_texts(query: str) -> None:
    assert make_retriever("bm25", CATS, range(7)).top(query, 3) == (6, 5, 4)


def test_texts_without_a_word_are_found_last() -> None:
    assert make_retriever("bm25", ["", "cat", "...", "dog", "fish"], range(5)).top("cat", 5) == (1, 4, 3, 2, 0)
    assert make_retriever("bm25", ["", "..."], range(2)).top("cat", 2) == (1, 0)


def test_case_and_punctuation_do_not_hide_a_word() -> None:
    assert make_retriever("bm25", ["A FILM.", "a book", "(Élan)", "a song"], range(4)).top("film", 1) == (0,)
    assert make_retriever("bm25", ["A FILM.", "a book", "(Élan)", "a song"], range(4)).top("élan", 1) == (2,)


def test_recent_ignores_the_query() -> None:
    retriever = make_retriever("recent", CATS, range(7))
    assert retriever.top("cat", 3) == retriever.top("dog", 3) == (6, 5, 4)
    assert retriever.top("cat", 2, before=4) == (3, 2)


def test_random_draws_without_replacement_by_seed_query_and_time() -> None:
    texts = ["x"] * 1000
    drawn = make_retriever("random", texts, range(1000), seed=1).top("q", 20, before=900)
    assert len(set(drawn)) == 20
    assert max(drawn) < 900
    assert make_retriever("random", texts, range(1000), seed=1).top("q", 20, before=900.0) == drawn
    assert make_retriever("random", texts, range(1000), seed=2).top("q", 20, before=900) != drawn
    assert make_retriever("random", texts, range(1000), seed=1).top("r", 20, before=900) != drawn
    assert make_retriever("random", texts, range(1000), seed=1).top("q", 20, before=901) != drawn


def test_random_is_uniform() -> None:
    retriever = make_retriever("random", ["x"] * 10, range(10))
    drawn = np.bincount([retriever.top(f"query {n}", 1)[0] for n in range(2000)], minlength=10)
    assert 130 < drawn.min() <= drawn.max() < 270  # 200 expected, five standard deviations


def test_random_is_the_same_in_every_process() -> None:
    code = "from oppu.retrieval import make_retriever as m; print(*m('random', ['x'] * 99, range(99), 3).top('q', 5))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = make_retriever("random", ["x"] * 99, range(99), 3).top("q", 5)
    assert other.stdout.split() == [str(index) for index in here]


def test_an_unknown_retriever_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown retriever 'bm52'.*bm25, random, recent"):
        make_retriever("bm52", [], [])


def test_a_retriever_of_ones_own_needs_no_change_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Oldest:
        def __init__(self, texts: Sequence[str], times: Sequence[float], seed: int = 0) -> None:
            self.count = len(texts)

        def top(self, query: str, k: int, before: float | None = None) -> tuple[int, ...]:
            return tuple(range(self.count))[:k]

    monkeypatch.setitem(RETRIEVERS, "oldest", Oldest)
    assert make_retriever("oldest", CATS, range(7)).top("cat", 2) == (0, 1)


def test_times_that_cannot_be_ordered_are_refused() -> None:
    with pytest.raises(DataError, match="text 1 has a time that is not a number"):
        make_retriever("recent", ["a", "b"], [1.0, float("nan")])
    with pytest.raises(ValueError, match="2 texts but 1 times"):
        make_retriever("recent", ["a", "b"], [1.0])
