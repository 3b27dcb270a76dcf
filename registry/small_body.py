"""Routes whose request is a little JSON: a longer body is refused (413) before it is read whole.

Use as `APIRouter(route_class=SmallBodyRoute)`.
"""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

MAX_BODY_BYTES = 64 * 1024


class SmallBodyRoute(APIRoute):
    """A route that takes at most `MAX_BODY_BYTES`, announced or not."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler on a request whose body is counted."""
        handle = super().get_route_handler()

        async def handle_small(request: Request) -> Response:
            announced = request.headers.get("content-length", "0")
            if not announced.isdecimal() or int(announced) > MAX_BODY_BYTES:
                raise _too_large()
            return await handle(Request(request.scope, _counted(request.receive)))

        return handle_small


def _counted(receive: Receive) -> Receive:
    received = 0

    async def count() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return count


def _too_large() -> HTTPException:
    # FastAPI turns every other error while it reads a body into a 400.
    detail = f"expected a body of at most {MAX_BODY_BYTES} bytes, got more"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
