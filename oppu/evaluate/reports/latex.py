"""Tables as LaTeX (booktabs): texts escaped, rows of cells, and a whole table of a study."""

from collections.abc import Sequence
from textwrap import wrap

from oppu import __version__

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "−": "$-$", "–": "--", "±": r"$\pm$", "²": "$^2$", "…": r"\dots{}", "“": "``", "”": "''",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
_HEADING_CHARACTERS = 8
"""A heading is broken into lines of so many."""
_LONG_TEXT = 40
"""Characters from which a cell's text is broken into lines."""


def tex(text: str) -> str:
    """Text for LaTeX, its special characters escaped."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def tex_row(cells: Sequence[str]) -> str:
    """A row of cells that are LaTeX already."""
    return " & ".join(cells) + r" \\"


def long_table(caption: str, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """A `longtable` of plain texts; `columns` have a title each, and whether they hold numbers."""
    kinds = [
        "r" if right else "p{5cm}" if any(len(row[place]) > _LONG_TEXT for row in rows) else "l"
        for place, (_, right) in enumerate(columns)
    ]
    lines = [
        f"% oppu {__version__}; needs \\usepackage{{booktabs,longtable}}",
        r"\begingroup\scriptsize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{{''.join(kinds)}}}",
        rf"\caption{{{_plain(caption)}}}\\",
        r"\toprule",
        tex_row([_heading(title, right) for title, right in columns]),
        r"\midrule",
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *(tex_row([_plain(cell) for cell in row]) for row in rows),
    ]
    return "\n".join([*lines, r"\end{longtable}", r"\endgroup", ""])


def _heading(title: str, right: bool) -> str:
    lines = r"\\".join(tex(line) for line in wrap(title, _HEADING_CHARACTERS, break_long_words=False))
    return rf"\shortstack[{'r' if right else 'l'}]{{{lines}}}"


def _plain(text: str) -> str:
    """On one line, as an empty one ends a paragraph; a bracket or star that opens a row is not taken for an option."""
    line = tex(" ".join(text.split()))
    return f"{{{line}}}" if line.startswith(("[", "*")) else line
