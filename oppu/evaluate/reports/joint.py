"""The joint report: Table 1 over tasks and seeds, its comparisons, and studies, in one page and five files.

Folders of finished experiments and studies in; `report.html`, `table1.csv`, `table1.tex`, `comparisons.csv`,
`comparisons.tex` and `studies.tex` out. The page fetches nothing; its numbers lead to the predictions that they were
computed from.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oppu.errors import ConfigError, OppuError
from oppu.evaluate.columns import TABLE_1, TableColumn
from oppu.evaluate.comparisons import is_personal
from oppu.evaluate.metrics import primary_metric
from oppu.evaluate.reports.joint_page import joint_page
from oppu.evaluate.reports.summary import best_two, count, number
from oppu.evaluate.reports.table import Gain, JointTable, Number, TaskTable, make_table
from oppu.evaluate.reports.table_files import comparisons_csv, comparisons_tex, table_csv, table_tex
from oppu.evaluate.reports.without_model import WORDS
from oppu.evaluate.runs import STUDY_FILE, Run, StudyResult, is_study, read_run, read_study
from oppu.evaluate.significance import LEVEL
from oppu.evaluate.study import study_tex, table_of
from oppu.store.files import make_folders, os_errors, write_atomically
from oppu.tasks import find_task


@dataclass(frozen=True, slots=True)
class Wins:
    """How often a personal column beats its counterpart, over tasks and metrics."""

    column: TableColumn
    counterpart: TableColumn
    better: int
    equal: int
    worse: int
    significantly_better: int
    significantly_worse: int

    @property
    def comparisons(self) -> int:
        """Of how many."""
        return self.better + self.equal + self.worse


@dataclass(frozen=True, slots=True)
class Joint:
    """What a joint report says first."""

    report: Path
    found: tuple[str, ...]
    """In a sentence each."""
    warnings: tuple[str, ...]
    """Runs that were left out, and what a reader must know before comparing rows."""


def write_joint_report(
    folders: Sequence[Path], out: Path, *, task_files: Sequence[str] = (), command: str = ""
) -> Joint:
    """Read the folders, each a finished experiment or study, and write the report's files to `out`.

    `task_files`: of tasks of one's own whose runs do not hold them. ConfigError for folders that are neither, all of
    them named, and where `out` holds something whose own report would be lost.
    """
    check_free(out)
    runs, studies = read_folders(folders, task_files)
    table = make_table(runs)
    wins = count_wins(table.gains)
    found = tuple(_findings(table))
    warnings = (
        *(f"{run.folder} is left out: {reason}." for run, reason in table.left_out),
        *table.flags,
    )
    with os_errors(out):
        make_folders(out)
    if table.tasks:
        for name, text in (
            ("table1.csv", table_csv(table, out)),
            ("table1.tex", table_tex(table)),
            ("comparisons.csv", comparisons_csv(table)),
            ("comparisons.tex", comparisons_tex(table)),
        ):
            write_atomically(out / name, text.encode("utf-8"))
    if studies:
        texts = [study_tex(each.record["title"], each.record["facts"], table_of(each.record)) for each in studies]
        write_atomically(out / "studies.tex", "\n".join(texts).encode("utf-8"))
    page = joint_page(table, studies, wins, found, warnings, out, command)
    write_atomically(out / "report.html", page.encode("utf-8"))
    return Joint(out / "report.html", found, warnings)


def check_free(out: Path) -> None:
    """ConfigError where `out` holds a run or a study."""
    for name, what in (("run.json", "an experiment"), (STUDY_FILE, "a study")):
        if (out / name).is_file():
            raise ConfigError(f"holds {what}, whose report would be lost", where=str(out), fix="use another --out")


def read_folders(folders: Sequence[Path], task_files: Sequence[str] = ()) -> tuple[list[Run], list[StudyResult]]:
    """Every folder as a run or a study, each once; ConfigError with all that cannot be read."""
    named = {find_task(file).name: file for file in task_files}
    runs: list[Run] = []
    studies: list[StudyResult] = []
    problems: list[OppuError] = []
    for folder in {path.resolve(): path for path in folders}.values():
        try:
            if is_study(folder):
                studies.append(read_study(folder))
            else:
                runs.append(read_run(folder, task_files=named))
        except OppuError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n  ".join(error.line() for error in problems)
        raise ConfigError(f"{len(problems)} folders cannot be read:\n  {lines}")
    return runs, studies


def count_wins(gains: Sequence[Gain]) -> list[Wins]:
    """For each personal column of Table 1 that has comparisons."""
    found = []
    for column in TABLE_1:
        own = [gain for gain in gains if gain.column == column]
        if own:
            signs, verdicts = Counter(gain.sign for gain in own), Counter(gain.verdict for gain in own)
            counts = (signs[1], signs[0], signs[-1], verdicts["better"], verdicts["worse"])
            found.append(Wins(column, own[0].counterpart, *counts))
    return found


def _findings(table: JointTable) -> list[str]:
    decided = [each for each in table.tasks if each.has_both]
    sentences = []
    if decided:
        won = [each for each in decided if all(is_personal(column.method) for column in each.best_columns)]
        sentences.append(
            f"The best column is a personal one in {_of_tasks(won, decided)}, by the first metric of each; a tie with "
            f"a column without modules does not count.{_best_against_best(decided)}{_against_no_model(decided)}"
        )
    own = {each.task.name for each in table.tasks if not each.is_of_the_paper}
    gains = [gain for gain in table.gains if gain.task.name not in own]
    others = [gain for gain in table.gains if gain.task.name in own]
    if gains:
        sentences.append(
            f"Of {count(len(gains), 'comparison')} of a personal column with its counterpart, over tasks and metrics, "
            f"{_compared(gains)}"
        )
    if others:
        names = ", ".join(dict.fromkeys(gain.task.name for gain in others))
        sentences.append(
            f"Of {count(len(others), 'comparison')} of a personal column with its counterpart in tasks that are not "
            f"among the paper's seven ({names}), {_compared(others)}"
        )
    return sentences


def _of_tasks(these: Sequence[TaskTable], of: Sequence[TaskTable]) -> str:
    """`3 of 4 tasks (a, b, c) and in 1 of 1 other task (d)`: those of the paper apart from those of one's own."""
    own = [each for each in of if not each.is_of_the_paper]
    papers = [each for each in of if each.is_of_the_paper]
    if not own:
        return _share(these, papers, "task")
    if not papers:
        return _share(these, own, "task", " not among the paper's seven")
    return f"{_share(these, papers, 'task')} and in {_share(these, own, 'other task')}"


def _share(these: Sequence[TaskTable], of: Sequence[TaskTable], noun: str, which: str = "") -> str:
    found = [each.task.name for each in these if each in of]
    return f"{len(found)} of {count(len(of), noun)}{which}" + (f" ({', '.join(found)})" if found else "")


def _best_against_best(decided: Sequence[TaskTable]) -> str:
    """In how many tasks the best personal column is significantly better than the best other, and in how many worse."""
    verdicts = {each.task.name: each.best_gain.verdict for each in decided if each.best_gain is not None}
    better, worse = ([each for each in decided if verdicts.get(each.task.name) == word] for word in ("better", "worse"))
    return (
        f" The best personal column is significantly better than the best one without modules in "
        f"{_of_tasks(better, decided)}, significantly worse in {_of_tasks(worse, decided)}; both are picked on the "
        "questions that they are compared on."
    )


def _against_no_model(decided: Sequence[TaskTable]) -> str:
    """How often the best column beats the best answer without a model, and where not; empty where there is none."""
    pairs = [(each, _best_pair(each)) for each in decided]
    asked = [(each, pair) for each, pair in pairs if pair is not None]
    if not asked:
        return ""
    beaten = [each for each, (best, floor) in asked if _is_better(best, floor)]
    others = [
        f"{each.task.name} ({number(best.mean)} against {number(floor.mean)}, {WORDS[floor.column.method]})"
        for each, (best, floor) in asked
        if each not in beaten
    ]
    said = f" The best column beats the best answer without a model in {_of_tasks(beaten, [each for each, _ in asked])}"
    return f"{said}; not in {', '.join(others)}." if others else f"{said}."


def _best_pair(each: TaskTable) -> tuple[Number, Number] | None:
    """The best column and the best answer without a model in the first metric."""
    metric = primary_metric(each.task)
    floor = each.best_without_model(metric)
    return None if floor is None else (each.numbers[metric, each.best_columns[0].name], floor)


def _is_better(best: Number, floor: Number) -> bool:
    """Whether the column reads better; reading alike is not better."""
    return best_two({"best": best.mean, "floor": floor.mean}, best.metric) == {"best": 1, "floor": 2}


def _compared(gains: Sequence[Gain]) -> str:
    signs, verdicts = Counter(gain.sign for gain in gains), Counter(gain.verdict for gain in gains)
    return (
        f"{signs[1]} read better, {signs[0]} equal, {signs[-1]} worse; {verdicts['better']} are significantly better "
        f"and {verdicts['worse']} significantly worse. If no module did anything, about "
        f"{len(gains) * (1 - LEVEL) / 2:.1f} of each would come out by chance."
    )
