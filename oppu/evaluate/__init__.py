"""What a run is worth: metrics, baselines, significance, result files and the report."""
