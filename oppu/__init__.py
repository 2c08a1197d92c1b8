"""oppu: one personal module per user, on a frozen base model (OPPU, arXiv 2402.04401)."""

__version__ = "0.1.0"
