"""Reports in a real browser: light, dark, on a phone and on paper; no errors, no requests, nothing sticks out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import LOOKS, Browser, Look, chromium
from made_runs import ALL_COLUMNS, NEWS, RATING, SOME, TITLES, made_run
from test_report import CONFIG, TASK, grid, sizes
from test_studies import MADE, Settings, squares

from oppu.evaluate.reports.joint import write_joint_report
from oppu.evaluate.reports.panels import Panel
from oppu.evaluate.reports.report import write_report
from oppu.evaluate.study import Column, Outcome, Table, Workplace, run_study


def _wide(settings: Settings, place: Workplace) -> Outcome:
    """With as many columns as the study of efficiency, of numbers as long, and a heat map, which is a picture."""
    titles = (
        "Varied", "Task", "Users", "Slots", "Items", "Tokens", "Model tokens", "Packed tokens", "Seconds", "Least",
        "Greatest", "Per user", "CPU seconds", "Peak MiB", "of it training", "CUDA peak MiB",
    )  # fmt: skip
    row = ("users", "movie_tagging", 8, 4, 12.5, 11_804, 16_060, 11_911, *[104.25] * 5, 1_812.5, 903.5, None)
    columns = tuple(Column(title, title, 1 if place >= 8 else None) for place, title in enumerate(titles))
    made = squares(settings, place)
    heat = Panel("Heat", lambda axes: axes.imshow([[0, 1], [1, 0]]))
    return replace(made, table=Table(columns, (row, row)), panels=(*made.panels, heat))


WIDE = replace(MADE, name="wide", run=_wide)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each sort, the joint one with all columns, a run left out, long commands and two studies."""
    place = tmp_path_factory.mktemp("pages")
    command = "oppu experiment --data " + "/".join(["a-long-folder-without-a-space"] * 9)
    runs = [made_run(place / f"news-{seed}", NEWS, seed, ALL_COLUMNS, command=command) for seed in (0, 1)]
    runs.append(made_run(place / "rating", RATING, 0, ALL_COLUMNS))
    runs.append(made_run(place / "titles", TITLES, 0, SOME, base="large", without_model={"copy": 0.9}))
    runs.append(made_run(place / ("a_run_that_is_left_out_and_has_no_space" * 3), NEWS, 2, users=7))
    run_study(MADE, Settings(place), place / "study", command=command)
    run_study(WIDE, Settings(place), place / "wide", command=command)
    joint = write_joint_report([*runs, place / "study", place / "wide"], place / "joint", command=command)
    assert any("a_run_that_is_left_out" in warning for warning in joint.warnings)
    single = write_report(place / "single", TASK, CONFIG | {"command": command}, grid(), sizes())
    studies = {name: place / name / "report.html" for name in ("study", "wide")}
    return {"joint": joint.report, "single": single, **studies}


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
@pytest.mark.parametrize("name", ["joint", "single", "study", "wide"])
def test_a_report_opens_without_errors_or_requests_and_nothing_sticks_out(
    browser: Browser, pages: dict[str, Path], name: str, look: Look
) -> None:
    seen = browser.look(pages[name], look)
    assert seen.errors == []
    assert seen.requests == []
    assert seen.too_wide == []
    assert seen.width <= look.width
    assert seen.background == {"light": "rgb(253, 253, 251)", "dark": "rgb(21, 23, 26)"}[look.scheme] or (
        look.media == "print" and seen.background == "rgb(255, 255, 255)"
    )


def test_what_these_tests_look_for_would_be_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><img src="missing.png">'
        '<link rel="stylesheet" href="http://127.0.0.1:9/style.css"><div style="width: 500px">wide</div>'
        "<script>console.error('said'); nothing.there</script>"
    )
    seen = browser.look(page, Look("phone", 390, 844, is_phone=True))
    assert seen.width >= 500
    assert len(seen.too_wide) == 1
    assert any("said" in error for error in seen.errors)
    assert any("Uncaught" in error for error in seen.errors)
    assert {request.rsplit("/", 1)[1] for request in seen.requests} == {"missing.png", "style.css"}


def test_the_joint_report_prints(browser: Browser, pages: dict[str, Path]) -> None:
    assert browser.print(pages["joint"]).startswith(b"%PDF-")
