"""What the studies share: trials, lessons, and what they measure with."""
