"""Where the cells come from: sources, cache, cleaning and splits. Imports no TensorFlow."""
