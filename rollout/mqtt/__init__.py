"""The broker: the seam, its in-memory twin, and paho for many messages."""
