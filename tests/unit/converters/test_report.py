"""The report is one page that loads nothing and shows what it is told, however hostile, in a real browser."""

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelfleet.converters.candidate import MAX_REASON, Candidate, Row
from modelfleet.converters.plots import Limit, PlotRow, bars, dots, logarithmic_dots
from modelfleet.converters.report import ReportPage, ReportProfile, render, shown_batch, shown_bytes

FIGURES = {
    "size_bytes": 12_345,
    "memory_bytes": 2048,
    "p50_ms": 1.5,
    "p95_ms": 2.0,
    "max_error": 0.25,
    "mean_error": 0.01,
    "accuracy": 0.97,
    "original_accuracy": 0.98,
    "batch": {"best": 8, "samples_per_s": {"1": 600.0, "8": 2500.0}},
}
HELD = Row(precision="int8", source_bytes=49_380, figures=FIGURES, float_layers=("conv_1",)).ended("chosen")
EXACT = Row(precision="float", source_bytes=49_380, figures={**FIGURES, "max_error": 0.0}).ended("held")
HOSTILE = """</style></svg></td><script>document.title = 'taken'</script><img src="ADDRESS/leak" onerror="document.title='x'">"""


def refused(reason: str) -> Candidate:
    return Row(precision="fp16", source_bytes=49_380, figures={"max_error": 9.0}).ended("refused", reason)


def page(text: str = "digits 1.0.0", *candidates: Candidate) -> ReportPage:
    section = ReportProfile(
        name=text, summary=text, note=text, candidates=candidates, latency_limit_ms=100, accuracy_limit=0.85
    )
    return ReportPage(title=text, note=text, facts=[(text, text)], profiles=[section])


def test_a_row_tells_ratio_and_points_lost_and_cuts_its_reason():
    assert HELD.ratio == 4.0
    assert HELD.points_lost == 1.0
    assert len(refused("x" * 5000).reason) == MAX_REASON
    assert refused("").to_dict() == {"precision": "fp16", "verdict": "refused", "max_error": 9.0}


def test_times_of_a_substitute_are_not_held_against_the_devices_limit():
    here = Row(precision="int8", source_bytes=9, figures={**FIGURES, "not_run_here": "other instructions"}).ended(
        "chosen"
    )
    html = render(page("m4", here))
    assert "Latency p95 on the building machine, ms" in html
    assert "limit 100 ms" not in html
    assert "limit 100 ms" in render(page("m4", here, EXACT))


def test_every_figure_stands_in_the_table():
    html = render(page("digits", HELD, EXACT, refused("node 'dense': too far off")))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert cells[:12] == [
        "int8",
        "chosen",
        "12.1 KiB",
        "4.00 ×",
        "2.0 KiB",
        "1.5",
        "2",
        "0.25",
        "0.01",
        "0.9700",
        "1.00",
        "8 (2,500/s)",
    ]
    assert "in float: conv_1" in cells
    assert "node &#x27;dense&#x27;: too far off" in cells


def test_times_that_are_not_the_devices_are_told_as_such():
    row = Row(precision="fp16", source_bytes=1, figures={**FIGURES, "not_run_here": "no GPU"}).ended("chosen")
    assert "times are not the device&#x27;s: no GPU" in render(page("digits", row))


def test_a_profile_of_which_nothing_is_known_has_its_note_and_no_plot():
    html = render(page("only a note"))
    assert "<svg" not in html
    assert "<table" not in html
    assert '<p class="bad">only a note</p>' in html


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (1 << 30, "1.0 GiB")],
)
def test_bytes_have_a_unit(value: int | None, shown: str):
    assert shown_bytes(value) == shown


def test_a_fixed_batch_is_an_empty_cell():
    assert shown_batch(refused("")) == ""


def row(value: float | None, verdict: str = "held") -> PlotRow:
    return PlotRow(label="a", value=value, shown=str(value), verdict=verdict)


def widths(svg: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]


def test_bars_are_as_long_as_their_values():
    long, half, nothing = widths(bars("t", [row(10.0), row(5.0), row(0.0)]))
    assert long == pytest.approx(2 * half)
    assert nothing < 2


def test_a_limit_is_a_line_where_it_is_near_and_words_where_it_is_far():
    near, far = (bars("t", [row(10.0)], Limit(value=value, shown=f"{value}")) for value in (12.0, 1000.0))
    assert 'class="limit"' in near and "limit 12.0" in near
    assert 'class="limit"' not in far and "limit 1000.0" in far
    assert widths(far)[0] > widths(near)[0]


def places(svg: str) -> list[float]:
    return [float(place) for place in re.findall(r'<circle[^>]* cx="([\d.]+)"', svg)]


def test_powers_of_ten_are_evenly_apart_and_zero_and_infinity_at_the_ends():
    zero, low, middle, high, beyond = places(
        logarithmic_dots("t", [row(0.0), row(1e-4), row(1e-2), row(1.0), row(float("inf"))])
    )
    assert middle - low == pytest.approx(high - middle, abs=0.2)
    assert zero == low
    assert beyond == high


def test_equal_shares_stand_at_the_same_place():
    first, second, lower = places(dots("t", [row(0.99), row(0.99), row(0.9)], Limit(value=0.85, shown="0.85")))
    assert first == second > lower


def test_an_unknown_value_has_no_mark():
    assert "<rect" not in bars("t", [row(None)])


def test_no_text_becomes_markup():
    label = Row(precision=HOSTILE, source_bytes=1, figures=FIGURES, float_layers=(HOSTILE,)).ended("chosen", HOSTILE)
    html = render(page(HOSTILE, label, refused(HOSTILE)))
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("</style>") == 1
    assert html.count("</svg>") == 4


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    return found


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Iterator[Callable[[Callable[[str], str]], tuple[str, list[str]]]]:
    """Show a page, made for the address it will have, in a browser; return its document and every path that was asked for."""
    asked: list[str] = []
    shown: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path == "/report" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(shown[0])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def show(made: Callable[[str], str]) -> tuple[str, list[str]]:
        address = f"http://127.0.0.1:{server.server_port}"
        shown.append(made(address).encode())
        options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        options += " --disable-component-update --disable-sync --virtual-time-budget=2000"
        command = [chromium, *options.split(), f"--user-data-dir={tmp_path / 'browser'}"]
        done = subprocess.run(
            [*command, "--dump-dom", f"{address}/report"], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout, asked

    yield show
    server.shutdown()
    thread.join()
    server.server_close()


def test_in_a_browser_the_page_asks_for_nothing_and_runs_nothing(browse):
    def made(address: str) -> str:
        text = HOSTILE.replace("ADDRESS", address)
        label = Row(precision=text, source_bytes=1000, figures=FIGURES, float_layers=(text,)).ended("chosen", text)
        return render(page(text, label, refused(text)))

    document, asked = browse(made)
    assert asked in (["/report"], ["/report", "/favicon.ico"])  # the browser's own wish for an icon
    assert "<script" not in document
    assert "<img" not in document
    assert document.count("<svg") == 4
    assert "<title>&lt;/style&gt;&lt;/svg&gt;" in document  # its own title still


def test_in_a_browser_an_escaped_page_that_were_not_would_be_caught(browse):
    """What the test above looks for does show when text is not escaped."""
    document, asked = browse(lambda address: HOSTILE.replace("ADDRESS", address))
    assert "/leak" in asked
    assert "<script" in document
