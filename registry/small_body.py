"""Routes whose request is a little JSON: a longer body is refused (413) before it is read whole.

Use as `APIRouter(route_class=SmallBodyRoute)`; a router whose bodies are longer derives a class with another cap. FastAPI
reads a body before it asks who sends it, so that without a cap a stranger could fill the memory.
"""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.types import Message, Receive

MAX_BODY_BYTES = 64 * 1024


class Body(BaseModel):
    """A request's JSON; a field that is not known is refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")


class SmallBodyRoute(APIRoute):
    """A route that takes at most `max_body_bytes`, announced or not."""

    max_body_bytes = MAX_BODY_BYTES

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler on a request whose body is counted."""
        handle = super().get_route_handler()

        async def handle_small(request: Request) -> Response:
            announced = request.headers.get("content-length", "0")
            if not announced.isdecimal() or int(announced) > self.max_body_bytes:
                raise _too_large(self.max_body_bytes)
            return await handle(Request(request.scope, _counted(request.receive, self.max_body_bytes)))

        return handle_small


def _counted(receive: Receive, most: int) -> Receive:
    received = 0

    async def count() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(most)
        return message

    return count


def _too_large(most: int) -> HTTPException:
    # FastAPI turns every other error while it reads a body into a 400.
    detail = f"expected a body of at most {most} bytes, got more"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
