"""A version's report comes from what the catalog holds, to whoever may read versions."""

from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from modelfleet.converters.report import POLICY
from modelfleet.registry.cli_versions import versions
from modelfleet.registry.tables import Variant
from tests.unit.registry.conftest import serve

PATH = "/v1/models/ui/shapes/versions/1.0.0/report"
GATE = {
    "precision": "int8",
    "samples": 100,
    "max_error": 0.5,
    "mean_error": 0.125,
    "mismatch_share": 0.0,
    "accuracy": 0.99,
    "original_accuracy": 1.0,
    "latency_p95_ms": 3.25,
    "memory_bytes": 4096,
    "size_bytes": 2048,
}
ROWS = [
    {"precision": "int8", "verdict": "chosen", "size_bytes": 2048, "p95_ms": 3.25, "accuracy": 0.99},
    {"precision": "fp16", "verdict": "refused", "reason": "<b>too far off</b>", "max_error": 7.0},
]


@pytest.fixture
def published(fleet):
    """A fleet with a version; `built` adds a variant as a build would leave it."""
    assert fleet.publish(fleet.publication().parts()).status_code == 201

    def built(profile: str, state: str = "READY", evidence: dict | None = None, error: str | None = None) -> None:
        with fleet.sessions.begin() as session:
            session.add(
                Variant(
                    version_id=fleet.queue.waiting[-1],
                    tenant="acme",
                    model="ui/shapes",
                    version="1.0.0",
                    profile=profile,
                    state=state,
                    counter=1,
                    evidence=evidence,
                    error=error,
                    created_at=datetime.now(UTC),
                )
            )

    return fleet, built


def test_shows_every_precision_that_was_tried(published):
    fleet, built = published
    evidence = {"gate": GATE, "limits": {"latency_ms": 100.0, "accuracy": 0.85}, "candidates": ROWS}
    built("linux-cpu-int8", evidence=evidence)
    answer = fleet.as_("viewer").get(PATH)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert "<h1>ui/shapes 1.0.0</h1>" in answer.text
    assert "<h2>linux-cpu-int8</h2>" in answer.text
    assert "&lt;b&gt;too far off&lt;/b&gt;" in answer.text
    assert answer.text.count("<svg") == 4


def test_a_variant_from_before_choices_were_kept_has_its_one_row(published):
    fleet, built = published
    built("linux-cpu-int8", evidence={"gate": GATE, "benchmark": {"p50_ms": 1.5, "p95_ms": 3.25}})
    text = fleet.as_("viewer").get(PATH).text
    assert "<td>2.0 KiB</td>" in text
    assert "<td>1.5</td><td>3.25</td>" in text


def test_a_variant_that_failed_is_told_with_its_reason(published):
    fleet, built = published
    built("mac-mlx", state="FAILED", error="ConversionError: <script>")
    text = fleet.as_("viewer").get(PATH).text
    assert '<p class="bad">FAILED. ConversionError: &lt;script&gt;</p>' in text


@pytest.mark.parametrize("evidence", [{}, {"candidates": [{"precision": 3}]}, {"gate": {}, "benchmark": {}}])
def test_evidence_of_another_form_leaves_the_rest_of_the_report(published, evidence: dict):
    fleet, built = published
    built("linux-cpu-int8", evidence=evidence)
    answer = fleet.as_("viewer").get(PATH)
    assert answer.status_code == 200
    assert "<h2>linux-cpu-int8</h2>" in answer.text


def test_a_version_that_is_not_there_is_not_found(fleet):
    assert fleet.as_("viewer").get("/v1/models/ui/shapes/versions/9.9.9/report").status_code == 404


def test_the_command_writes_the_page(published, tmp_path):
    fleet, built = published
    built("linux-cpu-int8", evidence={"gate": GATE, "candidates": ROWS})
    with serve(fleet.app) as url:
        environment = {"MODELFLEET_URL": url, "MODELFLEET_TOKEN": fleet.tokens["viewer"]}
        words = ("report", "ui/shapes", "1.0.0", "-o", str(tmp_path / "report.html"))
        done = CliRunner().invoke(versions, words, env=environment)
    assert done.exit_code == 0, done.output
    assert "<h1>ui/shapes 1.0.0</h1>" in (tmp_path / "report.html").read_text()
