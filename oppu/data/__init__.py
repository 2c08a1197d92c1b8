"""Users with their histories and queries: from the OPPU release, LaMP's own files, or one's own JSONL and CSV.

All formats become the same `records.Dataset`. Whatever is wrong in the files is listed whole; nothing is half-loaded.
"""

from oppu.data.asked import until_asked
from oppu.data.develop import development_set
from oppu.data.download import download_lamp, progress_bar
from oppu.data.overlap import without_asked_texts, without_questions_of_others, without_test_questions
from oppu.data.ranks import read_ranks
from oppu.data.read import Checked, check, named_task, read_dataset
from oppu.data.statistics import GroupStatistics, Statistics, statistics, statistics_table

__all__ = [
    "Checked",
    "GroupStatistics",
    "Statistics",
    "check",
    "development_set",
    "download_lamp",
    "named_task",
    "progress_bar",
    "read_dataset",
    "read_ranks",
    "statistics",
    "statistics_table",
    "until_asked",
    "without_asked_texts",
    "without_questions_of_others",
    "without_test_questions",
]
