"""How alike texts are, or those who wrote them, and whom that brings together: vectors in, places out.

Words are weighed by TF-IDF, tf(w, d) * (log((1 + N) / (1 + df(w))) + 1), and each line has length 1, so that the
product of two lines is their cosine. Everything here is exact and without chance: of equal likeness, the first counts.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from oppu.evaluate.metrics import FloatArray


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


def word_vectors(texts: Sequence[str]) -> FloatArray:
    """TF-IDF of each text, `[texts, words]`, of length 1; a text without words is zero."""
    counted = [Counter(words_of(text)) for text in texts]
    column = {word: place for place, word in enumerate(sorted({word for counts in counted for word in counts}))}
    tf = np.zeros((len(texts), max(1, len(column))))
    for row, counts in enumerate(counted):
        for word, count in counts.items():
            tf[row, column[word]] = count
    idf = np.log((1 + len(texts)) / (1 + (tf > 0).sum(axis=0))) + 1
    return of_length_one(tf * idf)


def share_vectors(listed: Sequence[Sequence[str]], names: Sequence[str]) -> FloatArray:
    """How often each of the names stands in each list, `[lists, names]`, of length 1; others are passed over."""
    counted = [Counter(values) for values in listed]
    return of_length_one(np.array([[float(counts[name]) for name in names] for counts in counted]))


def of_length_one(vectors: FloatArray) -> FloatArray:
    """Each line divided by its length; a line of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def cosines(vectors: FloatArray) -> FloatArray:
    """Of every two lines of length 1, `[lines, lines]`, to nine decimals: the last bits must not decide."""
    return np.round(vectors @ vectors.T, 9)


def farthest_first(alike: FloatArray, count: int, first: int = 0) -> list[int]:
    """`count` places: `first`, and then always the one whose greatest likeness to those chosen is least."""
    chosen = [first]
    nearest = alike[first].copy()
    while len(chosen) < min(count, len(alike)):
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, alike[chosen[-1]])
    return chosen


def nearest_first(alike: FloatArray, count: int, first: int = 0) -> list[int]:
    """`count` places: `first`, and those most like it, the most alike first."""
    others = [place for place in range(len(alike)) if place != first]
    return [first, *sorted(others, key=lambda place: -alike[first, place])[: count - 1]]


def groups_of(alike: FloatArray, size: int) -> list[list[int]]:
    """All places in groups of `size`, like with like; the last group takes what is left.

    A group begins with the two most alike of those who are in none, and takes in whoever is most like its members on
    average.
    """
    free = list(range(len(alike)))
    groups = []
    while free:
        group = [free[0]]
        if min(size, len(free)) > 1:
            pairs = [(a, b) for place, a in enumerate(free) for b in free[place + 1 :]]
            most = max(pairs, key=lambda pair: float(alike[pair]))
            group = list(most)
        while len(group) < min(size, len(free)):
            rest = [place for place in free if place not in group]
            group.append(max(rest, key=lambda place: float(alike[place, group].mean())))
        free = [place for place in free if place not in group]
        groups.append(sorted(group))
    return groups


def mean_likeness(alike: FloatArray, places: Sequence[int]) -> float:
    """Of every two of these places, on average; nan with fewer than two."""
    pairs = [alike[a, b] for i, a in enumerate(places) for b in places[i + 1 :]]
    return float(np.mean(pairs)) if pairs else float("nan")
