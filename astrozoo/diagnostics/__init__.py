"""What a result is worth: metrics, plots, reports, and scores of catalogues."""
