"""Where pictures are drawn: into files alone, unless whoever imports us has chosen (a notebook, or `MPLBACKEND`)."""

import os

import matplotlib

if not os.environ.get("MPLBACKEND"):
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["plt"]
