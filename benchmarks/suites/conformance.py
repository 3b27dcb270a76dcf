"""`make bench SUITE=conformance`: the official ONNX node cases through every target: right, refused with a reason, wrong.

Wrong must be 0. `ARGS="--target mlx"` runs one target, `--match Conv` some cases, `--write` keeps the verdicts as the committed
table (`conformance_tables/`), from which CI does not let a target fall.
"""

import argparse
import sys
from collections import Counter

from rich.progress import Progress

from modelfleet.benchmarks.suites._cases import cases_of, rules
from modelfleet.benchmarks.suites._conformance import read_table, run_cases, write_table
from modelfleet.benchmarks.suites._report import Target, bar, console, show, verdict
from modelfleet.benchmarks.suites._trial import DISPROVED, REFUSED, RIGHT, WRONG, Verdict
from modelfleet.converters.table import CONVERTERS
from modelfleet.hardware_profiles.profile import load_profiles


def main() -> int:
    """Run the cases, show the table, and return the exit status."""
    asked = _arguments()
    found = {name: _run(name, asked) for name in asked.target or _available()}
    targets = [] if asked.match else [target for name in found for target in _targets(name, found[name])]
    _show(found)
    for name, verdicts in found.items():
        _show_reasons(name, verdicts, asked.reasons)
        if asked.write:
            write_table(name, {**(read_table(name) if asked.match else {}), **verdicts})
    return verdict("conformance", targets) if targets else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(rules()))
    parser.add_argument("--match", default="", help="only cases whose name holds this text; no verdict")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--reasons", type=int, default=8, help="how many reasons of refusals to show for each target")
    return parser.parse_args()


def _available() -> list[str]:
    profiles = load_profiles()
    return [
        name
        for name, rule in rules().items()
        if rule.profile in profiles and profiles[rule.profile].runtime in CONVERTERS
    ]


def _run(name: str, asked: argparse.Namespace) -> dict[str, Verdict]:
    rule = rules()[name]
    cases = [case for case in cases_of(rule) if asked.match in case]
    with Progress(console=console) as progress:
        task = progress.add_task(name, total=len(cases))
        return run_cases(rule, cases, on_verdict=lambda _: progress.advance(task))


def _targets(name: str, verdicts: dict[str, Verdict]) -> list[Target]:
    rule, counts = rules()[name], Counter(each.outcome for each in verdicts.values())
    lost = sorted(
        case for case, each in read_table(name).items() if each.outcome == RIGHT and verdicts[case].outcome != RIGHT
    )
    return [
        Target(what=f"{name}: wrong", got=counts[WRONG], limit=0),
        Target(
            what=f"{name}: right of {rule.denominator}",
            got=counts[RIGHT] / rule.denominator,
            limit=rule.at_least,
            at_most=False,
        ),
        Target(what=f"{name}: once right, no longer {lost[:3]}", got=len(lost), limit=0),
    ]


def _show(found: dict[str, dict[str, Verdict]]) -> None:
    rows: list[tuple[object, ...]] = []
    for name, verdicts in found.items():
        counts = Counter(each.outcome for each in verdicts.values())
        share = counts[RIGHT] / max(len(verdicts), 1)
        outcomes = (counts[RIGHT], counts[REFUSED], counts[DISPROVED], counts[WRONG])
        rows.append((name, len(verdicts), *outcomes, f"{share:.1%}", bar(share, 1.0)))
    show(
        "official ONNX node cases that onnxruntime passes, by target",
        ("target", "cases", "right", "refused by name", "refused by the proof", "wrong", "right", ""),
        rows,
    )


def _show_reasons(name: str, verdicts: dict[str, Verdict], most: int) -> None:
    reasons = Counter((each.outcome, each.reason) for each in verdicts.values() if each.outcome != RIGHT)
    for (outcome, reason), count in reasons.most_common(most):
        console.print(f"{name}: {count:4d} {outcome}: {reason}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
