"""Answers without a model of a finished run: a most frequent label, a mean rating, the question as it is.

A run's results list them; their answers lie in its prediction files, and the right ones in its cells. A run that has
none, or whose files do not belong to its questions, gives none.
"""

import json

from oppu.evaluate.baselines import CONSTANT, COPY, MAJORITY, USER_MEAN
from oppu.evaluate.results import RESULTS_FILE, Cell, Prediction, predictions_file
from oppu.evaluate.runs import Run

GROUP = "No model"
"""The heading of the column of the best ones."""
WORDS = {
    MAJORITY: "each user's most frequent label",
    USER_MEAN: "each user's mean rating",
    CONSTANT: "one rating for all",
    COPY: "the question as it is",
}
"""What each answers."""
LETTERS = {MAJORITY: "m", USER_MEAN: "u", CONSTANT: "c", COPY: "q"}
"""For LaTeX, where a name is too wide."""


def baseline_cells(run: Run) -> list[Cell]:
    """The baselines that the run's results list and whose answers are there, always in the same order."""
    try:
        rows = json.loads((run.folder / RESULTS_FILE).read_bytes())["rows"]
        seconds = {row["method"]: float(row["seconds"]) for row in rows if row["method"] in WORDS}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = [_read(run, Cell(name, 0, (), seconds[name])) for name in WORDS if name in seconds]
    return [cell for cell in found if cell is not None]


def _read(run: Run, cell: Cell) -> Cell | None:
    """The cell with its predictions; None where its file is missing, damaged or of other questions."""
    try:
        listed = json.loads((run.folder / predictions_file(cell)).read_bytes())["golds"]
        outputs = {str(each["id"]): str(each["output"]) for each in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    golds = run.golds
    if outputs.keys() != {query for _, query in golds}:
        return None
    predictions = tuple(Prediction(user, query, gold, outputs[query]) for (user, query), gold in golds.items())
    return Cell(cell.method, cell.k, predictions, cell.seconds)
