"""The report of a version from what the catalog holds of it: pure, rows in, page out."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelfleet.converters.candidate import Candidate, Row, candidate_of
from modelfleet.converters.report import ReportPage, ReportProfile, shown_bytes
from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.registry.views import VariantView, VersionView


def report_of(
    version: VersionView, variants: Sequence[VariantView], profiles: Mapping[str, HardwareProfile]
) -> ReportPage:
    """Return the version's report, a section per variant, by profile.

    Args:
        version: the version.
        variants: its variants; one that is not built, or was not, is told with its state and its error.
        profiles: this service's own, for what a profile is called and asks.
    """
    facts = [
        ("State", version.state),
        ("Channel", version.channel),
        ("Published", f"{version.published_at.isoformat(timespec='seconds')} by {version.published_by}"),
        ("Source", f"{shown_bytes(version.source_length)}, sha256 {version.source_sha256}"),
        ("Golden set", f"sha256 {version.golden_sha256}"),
    ]
    ordered = sorted(variants, key=lambda variant: variant.profile)
    sections = [_section(variant, profiles.get(variant.profile), version.source_length) for variant in ordered]
    summary = version.card.get("summary", "")
    return ReportPage(title=f"{version.model} {version.version}", note=str(summary), facts=facts, profiles=sections)


def _section(variant: VariantView, profile: HardwareProfile | None, source_bytes: int) -> ReportProfile:
    limits: Mapping[str, Any] = (variant.evidence or {}).get("limits", {})
    return ReportProfile(
        name=variant.profile,
        summary=profile.summary if profile else "",
        note="" if variant.state == "READY" else f"{variant.state}. {variant.error or ''}".strip(),
        candidates=_candidates(variant, source_bytes),
        latency_limit_ms=limits.get("latency_ms"),
        accuracy_limit=limits.get("accuracy"),
    )


def _candidates(variant: VariantView, source_bytes: int) -> list[Candidate]:
    """Return the rows of the choice; of a variant from before choices were kept, its one row."""
    if variant.evidence is None:
        return []
    try:
        found = [candidate_of(row) for row in variant.evidence.get("candidates", [])]
        return found or [_only_row(variant.evidence, source_bytes)]
    except (msgspec.ValidationError, KeyError, TypeError):  # evidence of another release: the state is still told
        return []


def _only_row(evidence: Mapping[str, Any], source_bytes: int) -> Candidate:
    gate, bench = evidence["gate"], evidence["benchmark"]
    figures = {**gate, "p50_ms": bench["p50_ms"], "p95_ms": bench["p95_ms"]}
    return Row(precision=gate["precision"], source_bytes=source_bytes, figures=figures).ended("chosen")
