"""Pages, figures and tables of runs and studies."""
