"""The peer of `api`: a FastAPI app under uvicorn that answers one constant JSON, and nothing else.

Run as a program it listens on a free port of 127.0.0.1 and prints that port as its first line.
"""

import asyncio

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def constant() -> dict[str, str]:
    """Answer the constant."""
    return {"status": "ok"}


async def serve(app: FastAPI) -> None:
    """Serve on a free port, which is printed first."""
    # uvicorn opens the port itself, as by default: then asyncio sets TCP_NODELAY on every connection.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(serve(app))
