"""The earlier texts that go with a query (R of section 2.2): one retriever in each file.

In: texts with their times, a query, and the time that a text must lie before. Out: indices of texts, best first.
For every `before` the later texts do not exist, not even in counts. A new retriever is a file beside these: it is found
by its class, a Retriever with a name.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from math import isnan
from typing import Any

from oppu.errors import ConfigError, DataError
from oppu.retrieval.bm25 import BM25
from oppu.retrieval.retriever import Retriever, Timeline

RetrieverFactory = Callable[[Sequence[str], Sequence[float], int], Retriever]
"""Makes a retriever of texts, their times and a seed."""


def _found() -> Iterator[type[Any]]:
    """The retrievers of each file here."""
    for file in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{file.name}")).values():
            if isinstance(value, type) and Retriever in value.__mro__[1:]:
                yield value


RETRIEVERS: dict[str, RetrieverFactory] = {retriever.name: retriever for retriever in _found()}
"""Every retriever by name; one that lies elsewhere is added with `RETRIEVERS["mine"] = Mine`, in each process."""


def make_retriever(name: str, texts: Sequence[str], times: Sequence[float], seed: int = 0) -> Retriever:
    """The retriever of that name over texts and their times; texts need not be in order of time.

    Raises ConfigError for an unknown name, DataError for a time that is not a number, ValueError for unequal lengths.
    """
    if name not in RETRIEVERS:
        raise ConfigError(f"unknown retriever '{name}'", fix=f"use one of: {', '.join(RETRIEVERS)}")
    if len(texts) != len(times):
        raise ValueError(f"{len(texts)} texts but {len(times)} times")
    timeless = [f"text {index} has a time that is not a number" for index, time in enumerate(times) if isnan(time)]
    if timeless:
        raise DataError(timeless, where=f"retriever '{name}'", fix="give every text a time, or its position")
    return RETRIEVERS[name](texts, times, seed)


__all__ = ["BM25", "RETRIEVERS", "Retriever", "RetrieverFactory", "Timeline", "make_retriever"]
