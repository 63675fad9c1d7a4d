"""Torch modules without Pyro, which models and guides are made of."""
