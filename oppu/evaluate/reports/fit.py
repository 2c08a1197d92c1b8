"""A straight line through measured points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope x by least squares."""

    slope: float
    intercept: float
    r_squared: float
    """Share of y's variance that the line explains; 1 where y does not vary."""

    def at(self, x: float) -> float:
        """The line's y."""
        return self.intercept + self.slope * x


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The least-squares line; None with fewer than three different x, where R² says nothing."""
    if len(set(x)) < 3:
        return None
    left, right = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    slope, intercept = np.polyfit(left, right, 1)
    spread = float(((right - right.mean()) ** 2).sum())
    rest = float(((right - intercept - slope * left) ** 2).sum())
    return Line(float(slope), float(intercept), 1.0 - rest / spread if spread > 0 else 1.0)
