"""Table 1 and its comparisons as CSV for programs and as LaTeX (booktabs) for papers: values in, texts out."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from oppu import __version__
from oppu.evaluate.columns import TABLE_1, groups, table_metrics
from oppu.evaluate.metrics import HIGHER_IS_BETTER
from oppu.evaluate.reports.latex import tex, tex_row
from oppu.evaluate.reports.page import relative
from oppu.evaluate.reports.summary import interval, number, p_value, signed
from oppu.evaluate.reports.table import MORE_QUERIES, Gain, JointTable, Number, TaskTable
from oppu.evaluate.reports.without_model import GROUP, LETTERS, WORDS
from oppu.evaluate.significance import LEVEL, SAMPLES
from oppu.tasks import BUILT_IN, Task

SHORT = {
    "accuracy": "Acc",
    "f1_macro": "F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "rouge1": "R-1",
    "rougeL": "R-L",
}
"""The paper's names of the metrics."""

TABLE_FIELDS = (
    "task", "lamp_id", "metric", "group", "method", "k", "mean", "sd", "seeds", "users", "queries", "rank",
    "significant", "seconds", "predictions", "without_model", "without_model_mean",
)  # fmt: skip
COMPARISON_FIELDS = (
    "task", "lamp_id", "metric", "method", "k", "counterpart", "counterpart_k", "of", "seeds", "users", "queries",
    "difference", "low", "high", "p_value", "smallest_detectable", "verdict", "difference_to_find", "queries_per_user",
    "users_needed", f"users_needed_with_{MORE_QUERIES}_queries",
)  # fmt: skip


def short_name(task: Task) -> str:
    """`LaMP-2N`; of a task of one's own, and of one that asks a benchmark's questions in another way, its name."""
    return task.lamp_id.replace("_", "-") if task.name in BUILT_IN and task.lamp_id else task.name


def table_csv(table: JointTable, out: Path) -> str:
    """A row for each task, metric and column, also for those that were not run; paths as seen from `out`."""
    rows: list[Sequence[object]] = []
    for each in table.tasks:
        for metric in table_metrics(each.task):
            floor = each.best_without_model(metric)
            end = ("", "") if floor is None else (floor.column.method, floor.mean)
            for column in TABLE_1:
                start = (each.task.name, each.task.lamp_id, metric, column.group, column.method, column.k)
                found = each.numbers.get((metric, column.name))
                rows.append((*start, *(("",) * 9 if found is None else _fields(found, out)), *end))
    return _csv(TABLE_FIELDS, rows)


def _fields(found: Number, out: Path) -> Sequence[object]:
    return (
        found.mean,
        "" if found.spread is None else found.spread,
        " ".join(str(score.seed) for score in found.scores),
        found.users,
        found.queries,
        found.rank or "",
        "*" if found.is_significant else "",
        sum(score.seconds for score in found.scores),
        ";".join(relative(score.predictions, out) for score in found.scores),
    )


def comparisons_csv(table: JointTable) -> str:
    """A row for each personal column and metric that has its counterpart; of each task one for the best columns."""
    rows = []
    for gain in table.comparisons:
        found, need = gain.found, gain.need
        rows.append(
            (
                gain.task.name,
                gain.task.lamp_id,
                gain.metric,
                gain.column.method,
                gain.column.k,
                gain.counterpart.method,
                gain.counterpart.k,
                "the best" if gain.of_the_best else "the same prompt",
                " ".join(map(str, gain.seeds)),
                found.users,
                found.queries,
                found.difference,
                *("" if math.isnan(value) else value for value in (found.low, found.high, found.p_value)),
                "" if math.isnan(found.smallest_detectable) else found.smallest_detectable,
                gain.verdict,
                *(
                    ("",) * 4
                    if need is None
                    else (need.difference, need.queries, _or_nothing(need.users), _or_nothing(need.users_with_more))
                ),
            )
        )
    return _csv(COMPARISON_FIELDS, rows)


def table_tex(table: JointTable) -> str:
    """Table 1 as a `table*`, laid out as in the paper; before its columns the best answers without a model, if any."""
    floors = {place: _floors(each) for place, each in enumerate(table.tasks)}
    named = dict.fromkeys(floor.column.method for each in floors.values() for floor in each if floor is not None)
    before = 1 if named else 0
    spans = groups()
    several = any(len(number.scores) > 1 for each in table.tasks for number in each.numbers.values())
    names = "; ".join(f"{short_name(each.task)}: {each.task.title}" for each in table.tasks)
    caption = (
        f"{names}. Best in bold, second best underlined; * significantly better than the counterpart without OPPU "
        f"({LEVEL:.0%} interval, paired bootstrap over users)."
        + (" Mean over seeds, below it $\\pm$ the standard deviation." if several else "")
        + (f" {GROUP}: the best answer without one, not ranked ({_letters(list(named))})." if named else "")
    )
    lines = [
        f"% oppu {__version__}; needs \\usepackage{{booktabs}}",
        r"\begin{table*}[t]",
        r"\centering\scriptsize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_escape_but_pm(caption)}}}",
        rf"\begin{{tabular}}{{ll{'r' * (before + len(TABLE_1))}}}",
        r"\toprule",
        tex_row(["", "", *[""] * before, *(rf"\multicolumn{{{span}}}{{c}}{{{tex(name)}}}" for name, span in spans)]),
        " ".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in _ranges(spans, 3 + before)),
        tex_row(["Task", "Metric", *[GROUP] * before, *(_heading(column.title) for column in TABLE_1)]),
    ]
    for where, each in enumerate(table.tasks):
        lines.append(r"\midrule")
        for place, metric in enumerate(table_metrics(each.task)):
            found = [each.numbers.get((metric, column.name)) for column in TABLE_1]
            name = tex(short_name(each.task)) if place == 0 else ""
            floor = [_floor_tex(floors[where][place])] * before
            lines.append(tex_row([name, _metric_tex(metric), *floor, *map(_number_tex, found)]))
            if any(one is not None and one.spread is not None for one in found):
                lines.append(tex_row(["", "", *[""] * before, *map(_spread_tex, found)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def comparisons_tex(table: JointTable) -> str:
    """The comparisons as a `longtable`."""
    heads = ["Task", "Column", "Metric", "Difference", f"{LEVEL:.0%} interval", "$p$", "Detectable", "Users"]
    lines = [
        f"% oppu {__version__}; needs \\usepackage{{booktabs,longtable}}",
        r"\begingroup\footnotesize",
        r"\begin{longtable}{lllrrrrr}",
        r"\caption{Each personal column minus the same prompts without a module, and the best personal column minus "
        r"the best one without modules by each task's first metric, picked on the same questions: paired bootstrap "
        rf"over users, {SAMPLES:,} resamples. Detectable: the true difference that these users find with a power of "
        r"80\,\%. Users: how many find the difference in brackets with that power, with these numbers of questions.}\\",
        r"\toprule",
        tex_row([_percent(head) for head in heads]),
        r"\midrule",
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
    ]
    before = None
    for gain in table.comparisons:
        if before not in (None, gain.task):
            lines.append(r"\midrule")
        before = gain.task
        found = gain.found
        shown = signed(found.difference)
        lines.append(
            tex_row(
                [
                    tex(short_name(gain.task)),
                    tex(gain.name),
                    _metric_tex(gain.metric),
                    rf"\textbf{{{tex(shown)}}}" if gain.verdict != "open" else tex(shown),
                    tex(interval(found.low, found.high, signed) or "–"),
                    tex(p_value(found.p_value)),
                    tex(number(found.smallest_detectable)),
                    _need_tex(gain),
                ]
            )
        )
    return "\n".join([*lines, r"\end{longtable}", r"\endgroup", ""])


def _csv(fields: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(rows)
    return text.getvalue()


def _or_nothing(value: int | None) -> object:
    return "" if value is None else value


def _ranges(spans: Sequence[tuple[str, int]], first: int) -> list[tuple[int, int]]:
    """First and last column of each group, the first of all being `first`."""
    found = []
    for _, span in spans:
        found.append((first, first + span - 1))
        first += span
    return found


def _heading(title: str) -> str:
    return f"${title}$" if title.startswith("k = ") else tex(title)


def _metric_tex(metric: str) -> str:
    return f"{SHORT[metric]} $\\{'uparrow' if HIGHER_IS_BETTER[metric] else 'downarrow'}$"


def _number_tex(found: Number | None) -> str:
    if found is None:
        return "--"
    text = tex(number(found.mean))
    marked = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(found.rank, text)
    star = "$^{*}$" if found.is_significant else ""
    return marked + star


def _floors(each: TaskTable) -> list[Number | None]:
    """The best answer without a model in each metric."""
    return [each.best_without_model(metric) for metric in table_metrics(each.task)]


def _floor_tex(found: Number | None) -> str:
    """With the letter of its baseline; empty where there is none."""
    return "" if found is None else f"{tex(number(found.mean))}$^{{{LETTERS[found.column.method]}}}$"


def _letters(methods: Sequence[str]) -> str:
    """`m: each user's most frequent label; q: ...`, what the letters stand for."""
    return "; ".join(f"{LETTERS[method]}: {WORDS[method]}" for method in methods)


def _spread_tex(found: Number | None) -> str:
    return "" if found is None or found.spread is None else rf"{{\tiny $\pm$ {tex(number(found.spread))}}}"


def _need_tex(gain: Gain) -> str:
    if gain.need is None or gain.need.users is None:
        return "--"
    return f"{gain.need.users:,} ({number(gain.need.difference)})"


def _percent(text: str) -> str:
    return text.replace("%", r"\%")


def _escape_but_pm(text: str) -> str:
    """Escaped, but for the one piece of mathematics."""
    return r"$\pm$".join(tex(part) for part in text.split(r"$\pm$"))
