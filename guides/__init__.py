"""Guides of the zoo, one file per model (same stem), and general ones in :mod:`astrozoo.guides.auto`."""
