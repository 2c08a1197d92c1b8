"""Table 1 as the paper has it, which stands apart in the report."""

from made_runs import ALL_COLUMNS

from oppu.evaluate.columns import table_metrics
from oppu.evaluate.paper import Reported, table_1
from oppu.evaluate.reports.summary import best_two
from oppu.tasks import BUILT_IN


def test_the_papers_table_has_thirteen_columns_of_fourteen_rows() -> None:
    found = table_1()
    rows_of_it = [(task.name, metric) for task in BUILT_IN.values() for metric in table_metrics(task)]
    assert list(found) == [(*row, *column) for row in rows_of_it for column in ALL_COLUMNS]
    missing = [key for key, each in found.items() if each.value is None]
    assert missing == [("news_categorize", "accuracy", "pag", 0), ("news_categorize", "accuracy", "pag+rag", 1)]
    assert found["citation", "accuracy", "oppu+pag+rag", 1] == Reported(0.797, "best", True)
    assert sum(each.is_significant for each in found.values()) == 69


def test_the_papers_marks_are_those_of_its_numbers_but_for_one() -> None:
    found = table_1()
    odd = []
    for task, metric in dict.fromkeys((task, metric) for task, metric, *_ in found):
        row = {key[2:]: each for key, each in found.items() if key[:2] == (task, metric) and each.value is not None}
        ranks = best_two({key: each.value for key, each in row.items()}, metric)
        marks = {key: {"best": 1, "second": 2}[each.mark] for key, each in row.items() if each.mark}
        if ranks != marks:
            odd.append((task, metric))
    assert odd == [("movie_tagging", "f1_macro")]
