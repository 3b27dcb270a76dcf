"""hawkBit's DDI with the clients that are out there, unmodified: Debian's swupdate and PyPI's rauc-hawkbit, on a real service."""

import asyncio
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rauc_hawkbit.ddi.cancel_action import CancelStatusExecution, CancelStatusResult
from rauc_hawkbit.ddi.client import APIError, ConfigStatusExecution, ConfigStatusResult, DDIClient
from rauc_hawkbit.ddi.deployment_base import DeploymentStatusExecution, DeploymentStatusResult

from modelfleet.signer.cms import self_signed
from modelfleet.signer.keys import generate_key, load_signer
from tests.integration.hawkbit import SECONDS, TENANT, Hawkbit, Swupdate
from tests.servers import program
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def hawkbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hawkbit]:
    program("swupdate")
    folder = tmp_path_factory.mktemp("hawkbit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELFLEET_DDI_ROOT", str(folder / "slots"))
        patch.setenv("MODELFLEET_DDI_POLL_SECONDS", "1")
        made = Hawkbit(folder)
        try:
            made.publish("1.0.0", "1.1.0")
            yield made
        finally:
            made.server.stop()


def test_swupdate_installs_confirms_goes_on_and_comes_back(hawkbit: Hawkbit, tmp_path: Path) -> None:
    device = Swupdate(tmp_path, hawkbit, "cam-1", hawkbit.add_device("cam-1"))
    first = hawkbit.launch("cam-1", "1.0.0")
    with device.running():
        until(lambda: device.said("pending testing") > 0, seconds=SECONDS, shown=device.log.read_text)
        assert hawkbit.actions("cam-1") == [("1.0.0", "OPEN")]  # "All Chunks Installed." is no success
    assert hawkbit.running("cam-1") == "1.0.0"
    with device.running("-c 2"):
        hawkbit.action_comes_to("cam-1", ("1.0.0", "SUCCEEDED"))
        hawkbit.comes_to(first, "COMPLETED")
        second = hawkbit.launch("cam-1", "1.1.0", soak_seconds=3600)
        until(lambda: device.said("pending testing") > 1, seconds=SECONDS, shown=device.log.read_text)
    assert hawkbit.running("cam-1") == "1.1.0"
    with device.running("-c 2"):
        hawkbit.comes_to(second, "SOAK")
        installed = device.said("Installation in progress")
        hawkbit.act(second, "rollback")
        until(lambda: hawkbit.running("cam-1") == "1.0.0", seconds=SECONDS, shown=device.log.read_text)
    with device.running("-c 2"):
        hawkbit.comes_to(second, "ROLLED_BACK")
        polls = device.said("No pending action on server")  # restarted: there is nothing to do
        until(lambda: device.said("No pending action on server") > polls, seconds=SECONDS, shown=device.log.read_text)
    assert device.said("Installation in progress") == installed + 1
    states = [("1.0.0", "SUCCEEDED"), ("1.1.0", "SUCCEEDED"), ("1.0.0", "SUCCEEDED")]
    assert hawkbit.actions("cam-1") == states


def test_swupdate_refuses_another_keys_signature_and_is_not_asked_again_until_a_retry(
    hawkbit: Hawkbit, tmp_path: Path
) -> None:
    stranger = load_signer(generate_key(tmp_path / "stranger.pem"))
    other = tmp_path / "stranger.crt"
    other.write_bytes(self_signed(stranger, "stranger", datetime.now(UTC)))
    hawkbit.add_device("cam-2")
    token = hawkbit.gateway_token("cam-2")
    device = Swupdate(tmp_path, hawkbit, "cam-2", token, certificate=other, flag="-g")
    hawkbit.launch("cam-2", "1.0.0", soak_seconds=3600)
    with device.running():
        hawkbit.action_comes_to("cam-2", ("1.0.0", "FAILED"))
        polls = device.said("No pending action on server")
        until(
            lambda: device.said("No pending action on server") > polls + 1, seconds=SECONDS, shown=device.log.read_text
        )
    assert device.said("Authentication of all signatures failed") == 1
    assert hawkbit.running("cam-2") is None
    assert hawkbit.actions("cam-2") == [("1.0.0", "FAILED")]
    device.certificate = hawkbit.certificate
    assert hawkbit.root.post("/v1/ddi/devices/cam-2/retry") == {"forgiven": 1}
    with device.running():
        until(lambda: hawkbit.running("cam-2") == "1.0.0", seconds=SECONDS, shown=device.log.read_text)


def test_rauc_hawkbits_client_downloads_reports_and_cancels(hawkbit: Hawkbit, tmp_path: Path) -> None:
    token = hawkbit.add_device("cam-3", artifacts="files")
    first = hawkbit.launch("cam-3", "1.0.0")
    manifest = asyncio.run(install(hawkbit, token, tmp_path))
    hawkbit.comes_to(first, "COMPLETED")
    (variant,) = hawkbit.ci.get("/v1/variants", version="1.0.0")["variants"]
    assert manifest == variant["manifest_sha256"]
    second = hawkbit.launch("cam-3", "1.1.0")
    asyncio.run(cancel(hawkbit, token, second))
    assert hawkbit.actions("cam-3") == [("1.0.0", "SUCCEEDED"), ("1.1.0", "CANCELLED")]


async def install(hawkbit: Hawkbit, token: str, folder: Path) -> str:
    """Do what the client does for an update; the digest of the manifest among the files."""
    async with aiohttp.ClientSession() as session:
        client = ddi_client(hawkbit, session, token)
        root = await poll_for(client, "deploymentBase")
        assert "configData" in root["_links"]
        await client.configData(ConfigStatusExecution.closed, ConfigStatusResult.success, board="a board")
        assert "configData" not in (await client())["_links"]
        action, resource = root["_links"]["deploymentBase"]["href"].rpartition("/")[2].split("?c=")
        base = await client.deploymentBase[action](resource)
        digests = await download(client, base["deployment"]["chunks"][0]["artifacts"], folder)
        feedback = client.deploymentBase[action].feedback
        await feedback(
            DeploymentStatusExecution.proceeding, DeploymentStatusResult.none, ["Install: 50 %"], cnt=1, of=2
        )
        await feedback(DeploymentStatusExecution.closed, DeploymentStatusResult.success, ["Installed"])
        assert "deploymentBase" not in (await client())["_links"]
        with pytest.raises(APIError, match="410"):
            await client.deploymentBase[action]("1")
        with pytest.raises(APIError, match="404"):
            await client.deploymentBase["999999"]("1")
        with pytest.raises(APIError, match="401"):
            await ddi_client(hawkbit, session, token + "x")()
    return digests["manifest.json"]


async def download(client: DDIClient, artifacts: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    for artifact in artifacts:
        target = folder / artifact["filename"]
        md5 = await client.get_binary(artifact["_links"]["download-http"]["href"], str(target))
        assert md5 == artifact["hashes"]["md5"]
        assert hashlib.sha1(target.read_bytes()).hexdigest() == artifact["hashes"]["sha1"]
        digests[artifact["filename"]] = hashlib.sha256(target.read_bytes()).hexdigest()
        assert digests[artifact["filename"]] == artifact["hashes"]["sha256"]
    return digests


async def cancel(hawkbit: Hawkbit, token: str, rollout: str) -> None:
    """Begin an update, see it taken back, and say that it is cancelled."""
    async with aiohttp.ClientSession() as session:
        client = ddi_client(hawkbit, session, token)
        root = await poll_for(client, "deploymentBase")
        action = root["_links"]["deploymentBase"]["href"].rpartition("/")[2].split("?")[0]
        await client.deploymentBase[action]("1")
        await asyncio.to_thread(hawkbit.act, rollout, "rollback")
        root = await poll_for(client, "cancelAction")
        assert "deploymentBase" not in root["_links"]
        stop = (await client.cancelAction[action]())["cancelAction"]["stopId"]
        await client.cancelAction[stop].feedback(CancelStatusExecution.closed, CancelStatusResult.success)
        assert (await client())["_links"] == {}


async def poll_for(client: DDIClient, link: str) -> dict[str, Any]:
    async with asyncio.timeout(SECONDS):
        while link not in (root := await client())["_links"]:
            await asyncio.sleep(0.2)
        return root


def ddi_client(hawkbit: Hawkbit, session: aiohttp.ClientSession, token: str) -> DDIClient:
    host = hawkbit.server.url.removeprefix("http://")
    return DDIClient(session, host, False, token, TENANT, "cam-3")
