"""The server of `tuf`: the registry's own route of TUF files over one tenant's folder, under uvicorn, and nothing else.

Run as a program with the folder and the tenant it listens on a free port of 127.0.0.1 and prints that port as its first line.
"""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import uvicorn
from fastapi import FastAPI

from modelfleet.registry.routes_blobs import router


async def serve(trust_dir: Path, tenant: str) -> None:
    app = FastAPI()
    app.include_router(router)
    app.state.registry = SimpleNamespace(trust_dir=trust_dir, tenant=tenant)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
