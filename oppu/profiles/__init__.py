"""Textual profiles s_u (section 2.2): from a file, counted, asked of a model; and which of them a prompt may show."""

from oppu.profiles.count import counted_profiles
from oppu.profiles.files import read_profiles
from oppu.profiles.timeline import shown_profile

__all__ = ["counted_profiles", "read_profiles", "shown_profile"]
