"""The API behind a real nginx with the configuration that deploy/ ships: who may have bytes, the API says; nginx sends them."""

import random
import shutil
import string
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port, program, running
from tests.unit.registry.conftest import Fleet, serve

TEMPLATE = Path(__file__).parents[3] / "deploy" / "nginx" / "modelfleet.conf.template"
DATA = random.Random(2).randbytes(300_000)

MAIN = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_rlimit_nofile 1024;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/modelfleet.conf;
}}
"""


@dataclass(frozen=True)
class Proxy:
    """The nginx in front, and what speaks to it as a viewer."""

    url: str
    client: httpx.Client
    error_log: Path


@pytest.fixture
def proxy(fleet: Fleet, tmp_path: Path) -> Iterator[Proxy]:
    fleet.registry = replace(fleet.registry, accel_prefix="/_blobs/")
    fleet.app.state.registry = fleet.registry
    folder = tmp_path / "nginx"
    folder.mkdir()
    with serve(fleet.app) as upstream:
        port = configure(folder, upstream.removeprefix("http://"), fleet.blobs)
        command = [program("nginx"), "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        with running(command, log=folder / "log", ports=[port]):
            url = f"https://127.0.0.1:{port}"
            headers = {"Authorization": f"Bearer {fleet.tokens['viewer']}"}
            with httpx.Client(base_url=url, verify=False, headers=headers, timeout=30) as client:
                yield Proxy(url, client, folder / "error.log")


def configure(folder: Path, upstream: str, blobs: Path) -> int:
    """Write what the nginx image would make of the template, on a free port; returns it."""
    subject = ["-subj", "/CN=localhost", "-days", "1", "-nodes"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(folder / "tls.key")]
    made = [program("openssl"), "req", "-x509", *key, "-out", str(folder / "tls.crt"), *subject]
    subprocess.run(made, check=True, capture_output=True)
    port = free_port()
    values = {
        "MODELFLEET_NAME": "localhost",
        "MODELFLEET_UPSTREAM": upstream,
        "MODELFLEET_BLOBS": str(blobs),
        "MODELFLEET_TLS": str(folder),
    }
    text = TEMPLATE.read_text()
    for name, value in values.items():  # as envsubst: nginx' own $variables stay
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    (folder / "modelfleet.conf").write_text(text.replace("/dev/stdout", str(folder / "access.log")))
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    shutil.copymode(TEMPLATE, folder / "modelfleet.conf")
    return port


def test_nginx_sends_a_blob_that_the_api_grants(fleet: Fleet, proxy: Proxy) -> None:
    sha256 = fleet.registry.store.put(DATA)
    answer = proxy.client.get(f"/v1/blobs/{sha256}")
    assert (answer.status_code, answer.content) == (200, DATA)
    assert "x-accel-redirect" not in answer.headers
    assert answer.headers["server"].startswith("nginx")
    assert "immutable" in answer.headers["cache-control"]
    with httpx.Client(base_url=fleet.anonymous.base_url, transport=fleet.anonymous._transport) as direct:
        granted = direct.get(f"/v1/blobs/{sha256}", headers=proxy.client.headers)
    assert granted.content == b""  # no byte of it passes through the API


def test_a_download_that_was_cut_goes_on(fleet: Fleet, proxy: Proxy) -> None:
    sha256 = fleet.registry.store.put(DATA)
    answer = proxy.client.get(f"/v1/blobs/{sha256}", headers={"Range": "bytes=200000-"})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == "bytes 200000-299999/300000"
    assert answer.content == DATA[200_000:]


def test_nobody_has_a_blob_without_the_api(fleet: Fleet, proxy: Proxy) -> None:
    sha256 = fleet.registry.store.put(DATA)
    place = f"{sha256[:2]}/{sha256}"
    assert proxy.client.get(f"/v1/blobs/{sha256}", headers={"Authorization": "Bearer no"}).status_code == 401
    for path in (f"/_blobs/{place}", f"/v1/../_blobs/{place}", f"//_blobs/{place}"):
        assert proxy.client.get(path).status_code in (401, 404), path


def test_metrics_stay_on_the_inside(proxy: Proxy) -> None:
    assert proxy.client.get("/metrics").status_code == 404


def test_a_body_that_is_too_long_ends_at_nginx_but_a_model_passes(fleet: Fleet, proxy: Proxy) -> None:
    assert proxy.client.post("/v1/groups", content=b"x" * 70_000).status_code == 413
    parts = fleet.publication().parts()
    parts["model"] += b"\0" * 100_000  # refused by the API, which has read it: not by nginx
    key = {"Authorization": f"Bearer {fleet.tokens['publisher']}"}
    files = {name: (name, data) for name, data in parts.items()}
    answer = proxy.client.post("/v1/versions", files=files, headers=key)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_place_of_the_template_is_documented() -> None:
    text = TEMPLATE.read_text()
    used = {name for name in string.Template(text).get_identifiers() if name.startswith("MODELFLEET_")}
    described = {line.split()[1] for line in text.splitlines() if line.startswith("#   MODELFLEET_")}
    assert used == described
