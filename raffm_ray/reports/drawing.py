"""Matplotlib, drawing into files unless a notebook or `MPLBACKEND` chose another backend."""

import os

import matplotlib

if not os.environ.get("MPLBACKEND"):
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["plt"]
