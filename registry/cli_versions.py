"""`modelfleet versions`: what is published, taken away with its signatures, and verified without this server.

Files come by their digest in the manifest, whatever the server answers; the model signature beside them is for the public
`model_signing` command, the attestations are for `versions verify`.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import ListByDefault, api_options, end_with, show
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.signer.attested import Attested, verify_attestations
from modelfleet.signer.bundle import BUNDLE_FILE, entry_bundle_file
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import DigestError, FormatError, SignerError
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.names import NAME_PATTERN, SHA256_PATTERN, require
from modelfleet.signer.trust import PolicyChain, follow_roots, parse_policy, trusted_policy, trusted_root

VERSION_COLUMNS = ("model", "version", "channel", "counter", "state", "published_by", "published_at")
ATTESTATION_COLUMNS = ("name", "predicate_type", "sha256", "length")
TRUST_FILE = "trust.json"
MAX_TRUST_BYTES = 16 * 1024 * 1024
_NEW_FOLDER = click.Path(file_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, readable=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.group(cls=ListByDefault)
def versions() -> None:
    """Published versions, their files and what is attested of them.

    Example: modelfleet versions digits --json
    """


@versions.command("list")
@click.argument("model", required=False)
@api_options
def list_versions(client: ApiClient, as_json: bool, model: str | None) -> None:
    """List versions, of one MODEL or of all, the newest first.

    Example: modelfleet versions list digits --json
    """
    show(client.get("/v1/versions", model=model)["versions"], as_json, VERSION_COLUMNS)


@versions.command("fetch")
@click.argument("model")
@click.argument("version")
@click.argument("profile")
@click.option("--out", type=_NEW_FOLDER, required=True, help="A folder that is empty or not there.")
@api_options
def fetch(client: ApiClient, as_json: bool, model: str, version: str, profile: str, out: Path) -> None:
    """Fetch a variant's files with their OpenSSF model signatures.

    \b
    DIR/model.sig signs the whole folder, DIR/<model file>.sig the model file alone. Check them with the public tool:
      model_signing verify key DIR --signature DIR/model.sig --public_key releases.pub

    Example: modelfleet versions fetch digits 1.0.0 linux-cpu-int8 --out ./digits
    """  # noqa: D301 - click's own mark for "do not reflow"
    row = _variant(client, model, version, profile)
    with _new_folder(out) as folder:
        manifest = _manifest(client, row, folder)
        for file in manifest.files:
            _fetch_blob(client, file.sha256, folder / file.name)
        _fetch_blob(client, str(row["bundle_sha256"]), folder / BUNDLE_FILE)
        if row["entry_bundle_sha256"] is not None:
            _fetch_blob(client, str(row["entry_bundle_sha256"]), folder / entry_bundle_file(manifest.entry))
    made = [
        {"file": str(path), "bytes": path.stat().st_size} for path in sorted(out.iterdir(), key=lambda path: path.name)
    ]
    show(made, as_json, ("file", "bytes"))


@versions.command("report")
@click.argument("model")
@click.argument("version")
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
@api_options
def report(client: ApiClient, as_json: bool, model: str, version: str, out: Path) -> None:
    """Write a version's report as one HTML page: size, latency, error and accuracy per profile and precision.

    Example: modelfleet versions report digits 1.0.0 --out digits.html
    """
    page = client.text(f"/v1/models/{quote(model)}/versions/{quote(version, safe='')}/report")
    out.write_text(page, encoding="utf-8")
    show({"file": str(out), "bytes": out.stat().st_size}, as_json, ("file", "bytes"))


@versions.command("attestations")
@click.argument("model")
@click.argument("version")
@click.argument("profile")
@click.option("--out", type=_NEW_FOLDER, help="Write them here, a folder that is empty or not there.")
@api_options
def attestations(client: ApiClient, as_json: bool, model: str, version: str, profile: str, out: Path | None) -> None:
    """List what is attested of a variant: SLSA provenance and gate results; with --out, fetch them for `verify`.

    Example: modelfleet versions attestations digits 1.0.0 linux-cpu-int8 --out ./attested
    """
    found = client.get(f"/v1/variants/{model}/{version}/{profile}/attestations")
    if out is not None:
        with _new_folder(out) as folder:
            for row in found["attestations"]:
                _fetch_blob(client, row["sha256"], folder / f"{require(row['name'], NAME_PATTERN, 'attestation')}.json")
            chain = {name: found[name] for name in ("targets", "policy", "roots")}
            (folder / TRUST_FILE).write_text(json.dumps(chain))
    show(found["attestations"], as_json, ATTESTATION_COLUMNS)


@versions.command("verify")
@click.argument("folder", type=_FOLDER)
@click.option("--root", type=_FILE, required=True, help="The tenant's root.json, from its administrator.")
@click.option("--files", type=_FOLDER, help="A folder with the variant's files, to be those that are attested.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(folder: Path, root: Path, files: Path | None, as_json: bool) -> None:
    """Verify fetched attestations under root.json, and --files against them; needs no server.

    Exit status 3: somebody else signed, or what they say does not fit together.

    Example: modelfleet versions verify ./attested --root root.json --files ./digits
    """
    try:
        attested = _verify(folder, root, datetime.now(UTC))
        if files is not None:
            _require_files(attested.files, files)
    except SignerError as error:
        end_with(error, as_json)
    show(_told(attested), as_json, ("model", "version", "profile", "precision", "source_sha256", "tests"))


def _verify(folder: Path, root: Path, now: datetime) -> Attested:
    try:
        chain = msgspec.json.decode(_read(folder / TRUST_FILE, MAX_TRUST_BYTES), type=PolicyChain)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(f"{TRUST_FILE}: {error}") from error
    newest, _ = follow_roots(trusted_root(_read(root, MAX_TRUST_BYTES)), chain.roots)
    tenant = parse_policy(chain.policy).tenant  # the root says whose policy it is
    policy = trusted_policy(newest, chain, tenant=tenant, now=now).policy
    names = sorted(path for path in folder.glob("*.json") if path.name != TRUST_FILE)
    return verify_attestations({path.stem: _read(path, MAX_ENVELOPE_BYTES) for path in names}, policy)


def _require_files(expected: Mapping[str, str], folder: Path) -> None:
    """Refuse a folder whose files are not exactly the attested ones; model signatures may lie beside them."""
    for name, sha256 in expected.items():
        found = _sha256(folder / name) if (folder / name).is_file() else "no file"
        if found != sha256:
            raise DigestError(f"{folder / name}: expected sha256 {sha256}, got {found}")
    signatures = {BUNDLE_FILE, *(entry_bundle_file(name) for name in expected)}
    others = sorted({path.name for path in folder.iterdir()} - expected.keys() - signatures)
    if others:
        raise DigestError(f"{folder / others[0]}: expected only the attested files {sorted(expected)}")


def _told(attested: Attested) -> dict[str, Any]:
    gate, run = attested.gate, attested.provenance.predicate.run_details
    return {
        "model": gate.model,
        "version": gate.version,
        "profile": gate.profile,
        "precision": gate.precision,
        "source_sha256": gate.source_sha256,
        "golden_sha256": gate.golden_sha256,
        "files": dict(attested.files),
        "tests": list(attested.tests),
        "builder": run.builder.id,
        "finished_on": run.metadata.finished_on.isoformat(),
    }


def _variant(client: ApiClient, model: str, version: str, profile: str) -> dict[str, Any]:
    found = client.get("/v1/variants", model=model, version=version, profile=profile)["variants"]
    if not found:
        raise NotFoundError(f"no variant of {model}@{version} for profile {profile}: see `modelfleet variants`")
    if found[0]["state"] != "READY":
        raise ConflictError(f"expected a READY variant of {model}@{version} for {profile}, it is {found[0]['state']}")
    return found[0]


def _manifest(client: ApiClient, row: Mapping[str, Any], folder: Path) -> Manifest:
    path = folder / "manifest.json"
    _fetch_blob(client, str(row["manifest_sha256"]), path)
    manifest = parse_manifest(path.read_bytes())
    path.unlink()  # no part of what the model signature is over
    if manifest.confidential:
        raise ConflictError(f"{manifest.model}@{manifest.version} is confidential: only enrolled devices get its key")
    return manifest


def _fetch_blob(client: ApiClient, sha256: str, target: Path) -> None:
    found = client.download(f"/v1/blobs/{require(sha256, SHA256_PATTERN, 'digest')}", target)
    if found != sha256:
        raise DigestError(f"{target.name}: expected sha256 {sha256}, got {found}")


@contextlib.contextmanager
def _new_folder(out: Path) -> Generator[Path]:
    """Make a folder that becomes `out` when everything is in it, and is gone when something failed."""
    if out.exists() and any(out.iterdir()):
        raise ConflictError(f"{out} is not empty: choose another --out")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".fetching-", dir=out.absolute().parent))
    try:
        yield made
    except BaseException:
        shutil.rmtree(made)
        raise
    if out.exists():
        out.rmdir()
    made.chmod(0o755)
    made.rename(out)


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise FormatError(f"expected the file {path}: fetch it with `modelfleet versions attestations --out`")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FormatError(f"{path}: expected at most {max_bytes} bytes")
    return data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
