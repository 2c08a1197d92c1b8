"""The same work on many machines: users are dealt out over the workers of a Ray cluster."""
