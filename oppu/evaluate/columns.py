"""The thirteen columns of Table 1, in the paper's order and under its headings."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from oppu.evaluate.metrics import metrics_of
from oppu.tasks import Task


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: a method at one k."""

    group: str
    """The heading that it shares with its neighbours."""
    title: str
    """Its own heading."""
    method: str
    k: int

    @property
    def name(self) -> str:
        """That of its cells, `<method>-k<k>`."""
        return f"{self.method}-k{self.k}"


TABLE_1 = (
    TableColumn("Non-Personalized", "k = 0", "base", 0),
    # differs from the paper: it gives no k for its random column, and draws from "all user history corpus"; here it is
    # one item of the user's own history, for no prompt may hold another user's text
    TableColumn("Non-Personalized", "Random", "random", 1),
    TableColumn("RAG", "k = 1", "rag", 1),
    TableColumn("RAG", "k = 2", "rag", 2),
    TableColumn("RAG", "k = 4", "rag", 4),
    TableColumn("PAG", "k = 0", "pag", 0),
    TableColumn("PAG", "k = 1", "pag+rag", 1),
    TableColumn("RAG + OPPU", "k = 0", "oppu", 0),
    TableColumn("RAG + OPPU", "k = 1", "oppu+rag", 1),
    TableColumn("RAG + OPPU", "k = 2", "oppu+rag", 2),
    TableColumn("RAG + OPPU", "k = 4", "oppu+rag", 4),
    TableColumn("PAG + OPPU", "k = 0", "oppu+pag", 0),
    TableColumn("PAG + OPPU", "k = 1", "oppu+pag+rag", 1),
)

_NOT_IN_TABLE_1 = ("f1_macro_present",)


def table_metrics(task: Task) -> tuple[str, ...]:
    """The task's rows of Table 1."""
    return tuple(metric for metric in metrics_of(task) if metric not in _NOT_IN_TABLE_1)


def groups(columns: Sequence[TableColumn] = TABLE_1) -> list[tuple[str, int]]:
    """The headings that span columns, each with how many."""
    return [(name, len(list(members))) for name, members in groupby(columns, key=lambda column: column.group)]
