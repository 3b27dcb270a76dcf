"""The device: its update agent, and the library that an application embeds."""

from modelfleet.agent_client.errors import ModelError, NoModelError
from modelfleet.agent_client.model import Model, open_model

__all__ = ["Model", "ModelError", "NoModelError", "open_model"]
