"""`runs/report.sh`: which finished runs it puts on the page."""

from pathlib import Path

from test_runs import parsed, started


def test_seeds_of_some_columns_are_gathered_but_no_task_and_seed_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in (
        "columns/citation", "table1/citation", "table1/movie_tagging", "seeds/citation/seed-0", "seeds/citation/seed-1",
        "seeds/movie_tagging/seed-0", "seeds/movie_tagging/seed-2", "seeds/news_categorize/seed-1",
    ):  # fmt: skip
        (out / folder).mkdir(parents=True)
        (out / folder / "results.json").touch()
    (out / "seeds" / "citation" / "seed-3").mkdir()  # not finished
    (report,) = started("report.sh", "small", tmp_path)
    found = [str(folder.relative_to(out)) for folder in parsed(report)["folders"] if folder.name != "shift-citation"]
    assert found == [
        "columns/citation", "table1/movie_tagging", "seeds/citation/seed-1", "seeds/movie_tagging/seed-2",
        "seeds/news_categorize/seed-1",
    ]  # fmt: skip
