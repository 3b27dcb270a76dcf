"""Passes that change no output: what is constant or never read goes, bounds of accumulators become known."""
