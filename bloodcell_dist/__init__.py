"""Distributed training of image classifiers for single blood cells.

Holds the version only: importing the package must stay cheap, so nothing here imports TensorFlow.
"""

import os

__version__ = "0.1.0"

# TensorFlow's C++ start-up lines would bury a run's own; it reads this when it is imported. A user's value stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
