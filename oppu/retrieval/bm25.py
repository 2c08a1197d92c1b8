"""Okapi BM25 (rank_bm25's BM25Okapi), as if it were built anew on the texts before each query.

bm25s cuts the words; its index is not used, because it fixes the idf and the mean length when it is built, and it has
no idf with Okapi's floor.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import bm25s
import numpy as np
from numpy.typing import NDArray

from oppu.retrieval.retriever import Retriever, Timeline, newest_first

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Postings:
    """Which words stand in which texts, by word and then by position, so that a prefix of the history is a slice."""

    vocabulary: Mapping[str, int]
    """Number of each word."""
    keys: Ints
    """word * number of texts + position, ascending."""
    positions: Ints
    """The text of each key."""
    frequencies: Floats
    """tf: how often the word stands in that text."""
    words: tuple[Ints, ...]
    """The distinct words of each text."""
    lengths: Ints
    """Words in each text, repetitions counted."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """The words of texts that are given oldest first."""
        numbered = bm25s.tokenize(list(texts), **_WORDS, return_ids=True)
        size = max(1, len(texts))
        lengths = np.array([len(numbers) for numbers in numbered.ids], dtype=np.int64)
        flat = np.array([number for numbers in numbered.ids for number in numbers], dtype=np.int64)
        keys, frequencies = np.unique(flat * size + np.repeat(np.arange(len(texts)), lengths), return_counts=True)
        words = tuple(np.unique(np.array(numbers, dtype=np.int64)) for numbers in numbered.ids)
        return cls(numbered.vocab, keys, keys % size, frequencies.astype(np.float64), words, lengths)

    def of_words(self, words: Ints, count: int) -> tuple[Ints, Ints]:
        """(places, df): where the words' postings within the `count` oldest texts lie, and how many each word has."""
        first = words * max(1, len(self.lengths))
        starts, ends = np.searchsorted(self.keys, first), np.searchsorted(self.keys, first + count)
        df = ends - starts
        places = np.repeat(starts - (np.cumsum(df) - df), df) + np.arange(df.sum())
        return places, df


class BM25(Retriever):
    """Okapi BM25 over the texts earlier than `before`, with rank_bm25's parameters and its floor under the idf.

    score(q, d) = sum over w in q of idf(w) * tf(w, d) * (k1 + 1) / (tf(w, d) + k1 * (1 - b + b * |d| / mean |d|)),
    idf(w) = log(N - df(w) + 1/2) - log(df(w) + 1/2), or epsilon * mean idf of all words where that is negative;
    N, df and both means are those of the earlier texts. A query that shares no word with them: newest first.
    """

    name = "bm25"
    k1 = 1.5
    b = 0.75
    epsilon = 0.25

    def __init__(self, texts: Sequence[str], times: Sequence[float], seed: int = 0) -> None:
        self._timeline = Timeline(times)
        self._postings = Postings.of([texts[index] for index in self._timeline.order])
        self._total_length = np.concatenate([[0], np.cumsum(self._postings.lengths)])
        self._mean_idf = _mean_idf_by_count(self._postings)

    def top(self, query: str, k: int, before: float | None = None) -> tuple[int, ...]:
        """The `k` texts earlier than `before` that score highest; scores that agree to nine decimals are ties."""
        count = self._timeline.earlier(before)
        newest = np.array(newest_first(count), dtype=np.int64)
        # equal sums may differ in their last bits, which must not decide
        scores = np.round(self.scores(query, count), 9)
        best = newest[np.argsort(-scores[newest], kind="stable")]
        return self._timeline.indices(best[:k].tolist())

    def scores(self, query: str, count: int) -> Floats:
        """The scores of the `count` oldest texts, oldest first. Below zero where the mean idf is (few, like texts)."""
        postings = self._postings
        asked = Counter(_words(query))
        known = {postings.vocabulary[word]: times for word, times in asked.items() if word in postings.vocabulary}
        if not known or not self._total_length[count]:
            return np.zeros(count)
        words = np.array(list(known), dtype=np.int64)
        repeats = np.array(list(known.values()), dtype=np.float64)
        places, df = postings.of_words(words, count)
        positions, tf = postings.positions[places], postings.frequencies[places]
        idf = np.log(count - df + 0.5) - np.log(df + 0.5)
        idf = np.where(idf < 0, self.epsilon * self._mean_idf[count], idf)
        relative_length = postings.lengths[positions] / (self._total_length[count] / count)
        gain = tf * (self.k1 + 1) / (tf + self.k1 * (1 - self.b + self.b * relative_length))
        return np.bincount(positions, np.repeat(repeats * idf, df) * gain, minlength=count).astype(np.float64)


# differs from the paper: its code splits at white space, so that "film." is not "film"; here a word is a run of
# letters and digits in lower case, and no word is left out
_WORDS = {"token_pattern": r"\w+", "lower": True, "stopwords": [], "show_progress": False}


def _words(text: str) -> list[str]:
    words: list[str] = bm25s.tokenize([text], **_WORDS, return_ids=False)[0]
    return words


def _mean_idf_by_count(postings: Postings) -> Floats:
    """The mean idf over the words of the n oldest texts, for every n; 0 where they have no word.

    Words of equal df share an idf, so it is enough to keep how many words have which df while texts come in.
    """
    size = len(postings.words)
    logs = np.log(np.arange(size + 1) + 0.5)
    df = np.zeros(len(postings.vocabulary), dtype=np.int64)
    words_of_df = np.zeros(size + 1, dtype=np.int64)  # place 0 only absorbs the words' first steps
    means = np.zeros(size + 1)
    for count, words in enumerate(postings.words, start=1):
        np.subtract.at(words_of_df, df[words], 1)
        df[words] += 1
        np.add.at(words_of_df, df[words], 1)
        seen = words_of_df[1 : count + 1]
        if seen.any():
            means[count] = seen @ (logs[:count][::-1] - logs[1 : count + 1]) / seen.sum()
    return means
