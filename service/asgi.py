"""The application for a server of one's choice, with settings from the environment.

`granian --interface asgi modelfleet.service.asgi:app`. Each of the server's processes is a process of the service: with more than
one, `MODELFLEET_ROLES=api`, and the other roles elsewhere.
"""

import logging

from fastapi import FastAPI

from modelfleet.agent_client.logs import log_to_stderr
from modelfleet.service.app import create_app
from modelfleet.service.compose import Service, require_initialised
from modelfleet.service.settings import Settings

NOISY = ("amqtt", "transitions", "uvicorn.access", "alembic")


def make_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; its lifespan starts and stops the service.

    Raises:
        NotInitialisedError: the data folder holds no fleet.
    """
    found = settings or Settings()
    require_initialised(found)
    return create_app(Service(found, found.public_url or f"http://{found.host}:{found.port}"))


def __getattr__(name: str) -> FastAPI:
    """Make `app` when it is asked for: importing this module starts nothing."""
    if name != "app":
        raise AttributeError(name)
    log_to_stderr(as_json=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    made = globals()["app"] = make_app()
    return made
