"""Users with their histories and queries, from the OPPU release, from LaMP's own files, or from one's own JSONL and CSV.

All formats become the same `records.Dataset`; whatever is wrong in the files is listed whole, and nothing is half-loaded.
"""

from oppu.data.download import download_lamp, progress_bar
from oppu.data.read import Checked, check, read_dataset
from oppu.data.statistics import GroupStatistics, Statistics, statistics, statistics_table

__all__ = [
    "Checked",
    "GroupStatistics",
    "Statistics",
    "check",
    "download_lamp",
    "progress_bar",
    "read_dataset",
    "statistics",
    "statistics_table",
]
