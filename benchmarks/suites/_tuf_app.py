"""The server of `tuf`: the registry's own route of TUF files over one tenant's folder, under uvicorn, and nothing else.

Run as a program with the folder and the tenant it listens on a free port of 127.0.0.1 and prints that port as its first line.
"""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

from fastapi import FastAPI

from modelfleet.benchmarks.suites._bare_app import serve
from modelfleet.registry.routes_blobs import router


def app_of(trust_dir: Path, tenant: str) -> FastAPI:
    """Return an app of that route over the folder."""
    app = FastAPI()
    app.include_router(router)
    app.state.registry = SimpleNamespace(trust_dir=trust_dir, tenant=tenant)
    return app


if __name__ == "__main__":
    asyncio.run(serve(app_of(Path(sys.argv[1]), sys.argv[2])))
