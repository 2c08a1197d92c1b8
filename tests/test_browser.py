"""Reports in a real browser: light, dark, on a phone and on paper; no errors, no requests, nothing sticks out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import LOOKS, Browser, Look, chromium
from made_runs import ALL_COLUMNS, NEWS, RATING, SOME, TITLES, made_run
from test_report import CONFIG, TASK, grid, sizes
from test_studies import MADE, Settings

from oppu.evaluate.reports.joint import write_joint_report
from oppu.evaluate.reports.report import write_report
from oppu.evaluate.study import run_study


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each sort, the joint one with all columns, long commands and a study."""
    place = tmp_path_factory.mktemp("pages")
    command = "oppu experiment --data " + "/".join(["a-long-folder-without-a-space"] * 9)
    runs = [made_run(place / f"news-{seed}", NEWS, seed, ALL_COLUMNS, command=command) for seed in (0, 1)]
    runs.append(made_run(place / "rating", RATING, 0, ALL_COLUMNS))
    runs.append(made_run(place / "titles", TITLES, 0, SOME, base="large"))
    run_study(MADE, Settings(place), place / "study", command=command)
    joint = write_joint_report([*runs, place / "study"], place / "joint", command=command)
    single = write_report(place / "single", TASK, CONFIG | {"command": command}, grid(), sizes())
    return {"joint": joint.report, "single": single, "study": place / "study" / "report.html"}


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
@pytest.mark.parametrize("name", ["joint", "single", "study"])
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
