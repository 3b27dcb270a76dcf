"""Tree ensembles, linear models and scalers as C: packed tables or code."""
