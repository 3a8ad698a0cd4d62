"""Sweeps: a grid of runs, planned into a folder, trained one by one or by Slurm, compared in one table."""
