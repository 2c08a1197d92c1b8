"""JSON, JSONL and CSV files -> plain Python values; what cannot be read becomes a problem with its line."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from oppu.data.problems import Place, Problems


def read_text(path: Path, problems: Problems) -> str | None:
    """The text of a UTF-8 file (a byte order mark is dropped); None, with a problem, when it cannot be had."""
    place = Place(path.name)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.add(place, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.add(place, f"is not UTF-8 text (byte {error.start}); save it as UTF-8")
    return None


def read_json(path: Path, problems: Problems) -> object:
    """The value of a JSON file; None, with a problem that names the line, when it cannot be had."""
    text = read_text(path, problems)
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        problems.add(Place(path.name, error.lineno), f"malformed JSON: {error.msg} (column {error.colno})")
        return None
    except RecursionError:
        problems.add(Place(path.name), "malformed JSON: nested too deeply")
        return None
    if value is None:
        problems.add(Place(path.name), "holds null instead of data")
    return value


def read_rows(path: Path, problems: Problems) -> Iterator[tuple[Place, Mapping[str, object]]]:
    """The rows of a `.jsonl` or `.csv` file with their places; absent values (null, an empty cell) are left out."""
    text = read_text(path, problems)
    if text is None:
        return
    rows = _csv_rows(path, text, problems) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text, problems)
    yield from rows


def _jsonl_rows(path: Path, text: str, problems: Problems) -> Iterator[tuple[Place, Mapping[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(path.name, number)
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(place, f"malformed JSON: {error.msg} (column {error.colno})")
            continue
        except RecursionError:
            problems.add(place, "malformed JSON: nested too deeply")
            continue
        if isinstance(row, dict):
            yield place, {name: value for name, value in row.items() if value is not None}
        else:
            problems.add(place, "is not a JSON object; write one object per line")


def _csv_rows(path: Path, text: str, problems: Problems) -> Iterator[tuple[Place, Mapping[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header):
            problems.add(Place(path.name, 1), "the header names a column twice")
            return
        line = reader.line_num + 1
        for cells in reader:
            place = Place(path.name, line)
            line = reader.line_num + 1
            if not any(cells):
                continue
            if len(cells) != len(header):
                problems.add(place, f"has {len(cells)} cells, the header has {len(header)}; quote cells with commas")
                continue
            yield place, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    except csv.Error as error:
        problems.add(Place(path.name, line), f"malformed CSV: {error}")


def list_of_objects(value: object, name: str, place: Place, problems: Problems) -> list[Mapping[str, object]]:
    """`value` as a list of JSON objects; entries of another shape become problems and are left out."""
    if not isinstance(value, list):
        problems.add(place, f"{name} is not a list")
        return []
    for position, entry in enumerate(value, start=1):
        if not isinstance(entry, dict):
            problems.add(place, f"{name}: entry no. {position} is not an object")
    return [entry for entry in value if isinstance(entry, dict)]
