"""A study: one question about personal modules, asked with one command, answered with one figure and one table.

Each file in `studies/` holds one, called STUDY. Its settings are a frozen dataclass, and each field is an option of
`oppu study NAME`. What it measures is kept in the folder under its inputs: a measurement whose inputs are the same is
not repeated, and one more value in a list costs that value's measurements alone.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import pkgutil
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from oppu.errors import ConfigError, DataError
from oppu.evaluate import studies
from oppu.evaluate.circumstances import machine, versions
from oppu.evaluate.reports.latex import long_table
from oppu.evaluate.reports.page import fill_page, flatten, relative, source_links
from oppu.evaluate.reports.panels import Panel, figure_svg, panel_svg
from oppu.evaluate.reports.summary import rounded
from oppu.evaluate.under_way import FOLDER as UNDER_WAY
from oppu.store.files import make_folders, os_errors, write_atomically

Value = str | int | float | None

_KEPT = "measurements"
RUNS, STORE = "runs", "store"
"""Folders in which studies that train keep what they have finished."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a study's table."""

    name: str
    """In the CSV and the JSON; with its unit."""
    title: str
    """On the page."""
    digits: int | None = None
    """Decimals of its numbers on the page; None: as they are."""
    brief: bool = True
    """Whether the terminal shows it, too."""


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers of a study, one row for each case."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    """A value for each column; None: there is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study found."""

    found: tuple[str, ...]
    """In a sentence each, with the numbers."""
    panels: tuple[Panel, ...]
    """The figure."""
    table: Table
    facts: str
    """On what: data, base, sizes; under the headline."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read figure and table."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What else the JSON holds: fits, for instance."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a study works: its folder, what was measured there before, and whom it tells how far it is."""

    out: Path
    on_stage: Callable[[str, int, int], None] = lambda name, done, total: None
    sources: list[dict[str, str]] = field(default_factory=list)
    """The files that the numbers come from, as they were used: `what` one holds, and `file`, as seen from `out`."""

    def uses(self, file: Path, what: str) -> None:
        """Note that numbers of the study come from a file."""
        source = {"what": what, "file": relative(file, self.out)}
        if source not in self.sources:
            self.sources.append(source)

    def measured(
        self, inputs: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], what: str = ""
    ) -> dict[str, Any]:
        """What `measure` gives for these inputs, or gave when it was last done; both are plain JSON values.

        `what`: of which variant or part it is, for the list of files; empty: the short ones of the inputs.
        """
        text = json.dumps(inputs, sort_keys=True)
        path = self.out / _KEPT / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        self.uses(path, what or _brief(inputs))
        if path.is_file():
            return _read_measurement(path, json.loads(text))
        value = dict(measure())
        with os_errors(path.parent):
            make_folders(path.parent)
        write_atomically(path, _json({"inputs": inputs, "value": value}))
        return value


@dataclass(frozen=True, slots=True)
class Study:
    """One study."""

    name: str
    """On the command line, and of its files."""
    title: str
    summary: str
    """One line for `oppu study`."""
    help: str
    """What it does, for `oppu study NAME --help`, with an example."""
    source: str
    """Where the paper has it, such as Figure 8; empty: it has not."""
    paper: str
    """What the paper found, in a sentence."""
    settings: type[Any]
    """A frozen dataclass, its fields made by `option`."""
    run: Callable[[Any, Workplace], Outcome]


def option(text: str, default: Any = MISSING, *, least: float | None = None) -> Any:
    """A field of a study's settings: an option with this help; without a default it must be given."""
    return field(default=default, metadata={"help": text, "least": least})


def all_studies() -> tuple[Study, ...]:
    """Those in `studies/`, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(studies.__path__))
    return tuple(import_module(f"{studies.__name__}.{name}").STUDY for name in names)


def study_in(file: Path) -> Study:
    """The STUDY of a Python file of one's own. The file is run, and its folder put on the path.

    ConfigError where it cannot be run, or has none.
    """
    if not file.is_file():
        raise ConfigError("there is no such file", where=str(file), fix="see `oppu study` for the studies there are")
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) != str(file.resolve()):
        raise ConfigError(f"a module is called {file.stem} already", where=str(file), fix="give the file another name")
    sys.path.insert(0, str(file.resolve().parent))  # its own imports, and those of its measurements' processes
    try:
        found = getattr(import_module(file.stem), "STUDY", None)
    except Exception as error:  # whatever the file may raise
        raise ConfigError(f"cannot be run ({type(error).__name__}: {error})", where=str(file)) from error
    if not isinstance(found, Study):
        raise ConfigError("has no STUDY", where=str(file), fix="end it with `STUDY = Study(...)`")
    return found


def run_study(
    study: Study,
    settings: Any,
    out: Path,
    *,
    fresh: bool = False,
    command: str = "",
    on_stage: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Outcome:
    """Run a study and write NAME.json, NAME.csv, NAME.tex, NAME.svg and report.html to `out`; what is measured is kept.

    ConfigError where `out` holds something else, whose report would be lost.
    """
    _prepare(study, out, fresh)
    place = Workplace(out, on_stage)
    outcome = study.run(settings, place)
    config = {"settings": asdict(settings), "versions": versions(), "machine": machine()}
    record = {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "paper": study.paper,
        "found": outcome.found,
        "facts": outcome.facts,
        "notes": outcome.notes,
        "command": command,
        **config,
        "columns": outcome.table.columns,
        "table": [dict(zip(_names(outcome.table), row, strict=True)) for row in outcome.table.rows],
        "sources": place.sources,
        **outcome.numbers,
    }
    write_atomically(out / f"{study.name}.json", _json(record))
    write_atomically(out / f"{study.name}.csv", _csv(outcome.table).encode())
    write_atomically(out / f"{study.name}.tex", study_tex(study.title, outcome.facts, outcome.table).encode())
    write_atomically(out / f"{study.name}.svg", figure_svg(study.name, outcome.panels).encode())
    write_atomically(out / "report.html", _page(study, outcome, command, config, place).encode())
    shutil.rmtree(out / UNDER_WAY, ignore_errors=True)
    return outcome


def shown(value: Value, column: Column) -> str:
    """A value of the table for people."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str) or column.digits is None:
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{rounded(value, column.digits):,.{column.digits}f}".replace("-", "−")


def is_number(table: Table, place: int) -> bool:
    """Whether a column holds numbers and stands on the right."""
    return any(isinstance(row[place], int | float) for row in table.rows)


def headings(table: Table) -> list[tuple[str, bool]]:
    """Of each column its title, and whether it stands on the right."""
    return [(column.title, is_number(table, place)) for place, column in enumerate(table.columns)]


def shown_rows(table: Table) -> list[list[str]]:
    """The table's values for people."""
    return [[shown(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows]


def study_tex(title: str, facts: str, table: Table) -> str:
    """A study's table as LaTeX."""
    return long_table(f"{title.removesuffix('.')}. {facts}", headings(table), shown_rows(table))


def table_of(record: Mapping[str, Any]) -> Table:
    """The table in a study's JSON; older ones do not describe their columns."""
    names = list(record["table"][0]) if record["table"] else []
    described = record.get("columns") or [{"name": name, "title": name.replace("_", " ")} for name in names]
    columns = tuple(Column(**column) for column in described)
    return Table(columns, tuple(tuple(row.get(column.name) for column in columns) for row in record["table"]))


def _prepare(study: Study, out: Path, fresh: bool) -> None:
    files = [out / f"{study.name}.{ending}" for ending in ("json", "csv", "tex", "svg")] + [out / "report.html"]
    with os_errors(out):
        make_folders(out)
        record, content = out / "study.json", _json({"study": study.name})
        if any(out.iterdir()) and not (record.is_file() and record.read_bytes() == content):
            raise ConfigError(
                f"holds something else than the study '{study.name}'", where=str(out), fix="use another --out"
            )
        if fresh:
            for part in (_KEPT, RUNS, STORE, UNDER_WAY):
                shutil.rmtree(out / part, ignore_errors=True)
            for file in files:
                file.unlink(missing_ok=True)
    write_atomically(record, content)


def _read_measurement(path: Path, inputs: object) -> dict[str, Any]:
    with os_errors(path):
        text = path.read_bytes()
    try:
        kept = json.loads(text)
        if kept["inputs"] == inputs:
            return dict(kept["value"])
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(["is damaged"], where=str(path), fix="delete the file to measure it again")


def _page(study: Study, outcome: Outcome, command: str, config: Mapping[str, Any], place: Workplace) -> str:
    return fill_page(
        "study.html.j2",
        study=study,
        outcome=outcome,
        command=command,
        panels=[(panel, panel_svg(f"panel{number}", panel)) for number, panel in enumerate(outcome.panels)],
        columns=headings(outcome.table),
        rows=shown_rows(outcome.table),
        sources=source_links(place.sources, place.out, place.out),
        settings=list(flatten(config)),
    )


def _brief(inputs: Mapping[str, Any]) -> str:
    """`size 2, rounds 3`."""
    return ", ".join(f"{key} {value}" for key, value in inputs.items() if isinstance(value, str | int | float))


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_names(table))
    writer.writerows(table.rows)
    return text.getvalue()


def _names(table: Table) -> Sequence[str]:
    return [column.name for column in table.columns]


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n").encode()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
