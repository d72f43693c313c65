"""Measurements: each module is a command (`python -m experiments.NAME`) that writes a JSON record and a picture."""
