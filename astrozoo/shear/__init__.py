"""Shear from images: fits of single galaxies under an interim prior, and what the command ``run`` does."""
