"""Crowded fields: how many sources there are is part of what is inferred."""
