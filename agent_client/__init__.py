"""The device: its update agent, and the library that an application embeds."""
