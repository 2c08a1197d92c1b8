"""What the paper itself reports, as a fact about the paper: another model and other data than those of any run here.

`table1.csv` is Table 1 of arXiv 2402.04401 with its marks: `best` (bold), `second` (underlined) and `*` (significant
improvement against the counterpart without OPPU). In the text that it was taken from, the accuracy of news
categorization has one value, .817, for the two columns of PAG; both are therefore left empty.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files

SOURCE = "Table 1 of arXiv 2402.04401: Llama-2-7B, LaMP, the 100 most active users of each task"


@dataclass(frozen=True, slots=True)
class Reported:
    """A number of Table 1."""

    value: float | None
    """None: not known."""
    mark: str
    """best, second, or nothing, as printed; the second best macro-F1 of movie tagging is not the second highest."""
    is_significant: bool


def table_1() -> dict[tuple[str, str, str, int], Reported]:
    """Table 1 by (task, metric, method, k), row by row."""
    text = files("oppu.evaluate.paper").joinpath("table1.csv").read_text(encoding="utf-8")
    return {
        (row["task"], row["metric"], row["method"], int(row["k"])): Reported(
            float(row["value"]) if row["value"] else None, row["mark"], row["significant"] == "*"
        )
        for row in csv.DictReader(text.splitlines())
    }
