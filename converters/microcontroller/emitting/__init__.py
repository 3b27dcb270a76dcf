"""Memory planned, sources and the files around them written."""
