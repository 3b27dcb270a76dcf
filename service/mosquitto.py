"""Configuration of one mosquitto (2.0.11 or newer) that several tenants share: DESIGN section 5.

One listener per tenant with that tenant's own CA, CRL and access rules; who a client is, its user name and its client id are all
the common name of its certificate. The rules have the tenant written out, since Debian's mosquitto does not strip a `mount_point`
on delivery.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from modelfleet.agent_client.protocol import TOPIC_ROOT, host_topic
from modelfleet.registry.certificates import RevocationList
from modelfleet.registry.fleet_ca import load_ca
from modelfleet.registry.service_certificates import ONLY_EXECUTOR, controller_name, keep_server
from modelfleet.service.database import open_database, session_factory
from modelfleet.service.errors import SettingsError
from modelfleet.service.settings import Settings
from modelfleet.signer.files import write_durably
from modelfleet.signer.names import NAME_PATTERN

MAX_PACKET_BYTES = 256 * 1024
"""Above the largest document (128 KiB of DSSE)."""

_HEAD = """\
# Made by `modelfleet deploy mosquitto`: make it again rather than change it.
# After a new crl.pem or certificate: kill -HUP (systemctl reload mosquitto).
# Clients that are connected stay until they reconnect.
per_listener_settings true
sys_interval 0

# mosquitto's defaults drop an acknowledged burst.
max_queued_messages 0
max_inflight_messages 4000
set_tcp_nodelay true

max_packet_size {max_packet}
max_keepalive 300
persistent_client_expiration 14d
persistence true
persistence_location {state}/
"""

_LISTENER = """
# Tenant {tenant}
listener {port}
allow_anonymous false
allow_zero_length_clientid false
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
cafile {folder}/ca.pem
crlfile {folder}/crl.pem
certfile {folder}/broker.pem
keyfile {folder}/broker-key.pem
acl_file {folder}/acl
"""

_ACL = """\
# Tenant {tenant}: %u is the common name of the client's certificate, a device's id.
pattern read {root}/{tenant}/d/%u/desired
pattern write {root}/{tenant}/d/%u/report
pattern write {root}/{tenant}/d/%u/metrics
pattern write {root}/{tenant}/d/%u/status

# Every device of the tenant reads its group documents: which group a device is in, the broker does not know.
pattern read {root}/{tenant}/g/+/+/desired
pattern read {host}
"""

_CONTROLLER = """
user {controller}
topic readwrite {root}/{tenant}/#
"""


@dataclass(frozen=True, kw_only=True)
class TenantListener:
    """A tenant, the data folder with its CA, and the port of its listener."""

    tenant: str
    data: Path
    port: int


def parse_listener(text: str) -> TenantListener:
    """Return what `TENANT=DATA:PORT` says (SettingsError: it has no such form)."""
    tenant, _, rest = text.partition("=")
    data, _, port = rest.rpartition(":")
    named = re.fullmatch(NAME_PATTERN, tenant) is not None
    if not named or not data or re.fullmatch(r"[0-9]{1,5}", port) is None or not 1 <= int(port) <= 65535:
        raise SettingsError(f"expected TENANT=DATA:PORT, such as acme=./fleet:8883, got {text!r}")
    return TenantListener(tenant=tenant, data=Path(data), port=int(port))


def configuration(listeners: Sequence[TenantListener], *, place: Path, state: Path) -> str:
    """Return mosquitto.conf for files that lie in `place` on the broker's machine, and a database in `state`."""
    head = _HEAD.format(max_packet=MAX_PACKET_BYTES, state=state)
    return head + "".join(
        _LISTENER.format(tenant=each.tenant, port=each.port, folder=place / each.tenant) for each in listeners
    )


def access_rules(tenant: str, executors: Sequence[str] = (ONLY_EXECUTOR,)) -> str:
    """Return a tenant's access rules, mosquitto's acl_file, with a controller for each of its `executors`."""
    names = [controller_name(tenant, executor) for executor in executors]
    return _ACL.format(root=TOPIC_ROOT, tenant=tenant, host=host_topic(tenant)) + "".join(
        _CONTROLLER.format(root=TOPIC_ROOT, tenant=tenant, controller=name) for name in names
    )


def write_configuration(
    listeners: Sequence[TenantListener],
    *,
    names: Sequence[str],
    out: Path,
    place: Path,
    state: Path,
    now: datetime,
    executors: Sequence[str] = (ONLY_EXECUTOR,),
) -> list[Path]:
    """Write everything that one mosquitto needs into `out`, and return the files.

    Args:
        names: host names and addresses by which devices reach the broker.
        place: where the files will lie on the broker's machine.
        executors: names of the processes that run a controller of each tenant (`MODELFLEET_EXECUTOR`).

    Raises:
        SettingsError: a tenant or port is named twice. FleetCaError: a data folder has no CA of that tenant.
    """
    _require_distinct(listeners)
    files = {out / "mosquitto.conf": configuration(listeners, place=place, state=state).encode()}
    for each in listeners:
        folder = out / each.tenant
        settings = Settings(data=each.data, tenant=each.tenant)
        ca = load_ca(settings.ca_folder)
        if ca.tenant != each.tenant:
            raise SettingsError(f"{each.data}: expected the fleet of tenant {each.tenant!r}, found {ca.tenant!r}")
        engine = open_database(settings.sqlalchemy_url)
        try:
            files[folder / "crl.pem"] = RevocationList(ca, session_factory(engine)).pem(now)
        finally:
            engine.dispose()
        files[folder / "ca.pem"] = ca.pem.encode()
        files[folder / "acl"] = access_rules(each.tenant, executors).encode()
        keep_server(ca, folder, names, now)
    for path, data in files.items():
        write_durably(path, data)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _require_distinct(listeners: Sequence[TenantListener]) -> None:
    for what, values in (("tenant", [each.tenant for each in listeners]), ("port", [each.port for each in listeners])):
        if len(set(values)) != len(values):
            raise SettingsError(f"expected each {what} once, got {values}")
