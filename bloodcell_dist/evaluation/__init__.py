"""How good a run is: metrics, pictures, predictions, the result and the report."""
