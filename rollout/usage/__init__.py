"""How much models are used."""
