"""Finished models outside a run: export to plain Keras, prediction."""
