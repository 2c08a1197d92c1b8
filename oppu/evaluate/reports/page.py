"""Pages of one file: a template of this folder and values in, HTML out; and links to files beside them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined


def fill_page(template: str, **values: Any) -> str:
    """The page that a template (`report.html.j2`) makes of the values; it may include other files of this folder."""
    environment = Environment(
        loader=FunctionLoader(lambda name: files("oppu.evaluate.reports").joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, text)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple | set | frozenset):
            yield f"{prefix}{key}", ", ".join(str(part) for part in value) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, with slashes."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def href(path: Path, folder: Path) -> str:
    """A link to a file from a page in the folder."""
    return quote(relative(path, folder))


def source_links(
    sources: Sequence[Mapping[str, str]], study: Path, folder: Path
) -> list[tuple[str, list[tuple[str, str]]]]:
    """A study's sources for a page in `folder`: by what they hold, each file as seen from the study, and its link."""
    found: dict[str, list[tuple[str, str]]] = {}
    for each in sources:
        found.setdefault(each["what"], []).append((each["file"], href(study / each["file"], folder)))
    return list(found.items())
