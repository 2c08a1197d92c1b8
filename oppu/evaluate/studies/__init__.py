"""The studies, one in each file; a new one is a new file with a STUDY in it (see `oppu/evaluate/study.py`)."""
