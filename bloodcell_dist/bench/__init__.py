"""How fast this machine trains, part by part; what `bloodcell-dist bench` measures. Imports nothing by itself."""

PARTS = ("step", "augmentation", "input", "allreduce", "scaling")
"""In the order in which they are measured."""
