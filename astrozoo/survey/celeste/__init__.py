"""Celeste over a whole field: fitted sources, their posteriors, catalogue, report."""
