"""The page's code in the documentation opens a model of the right digest, and no other."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from modelfleet.converters.browser.node import FOLDER, node_missing

ROOT = Path(__file__).parents[4]
IMAGES = ROOT / "examples" / "mlperf_tiny" / "ic_f32.onnx"


@pytest.mark.skipif(node_missing() != "", reason=node_missing())
@pytest.mark.parametrize("right", [True, False])
def test_the_documented_code_opens_what_it_verified_and_nothing_else(right: bool, tmp_path: Path):
    (code,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "converters.md").read_text(encoding="utf-8"), re.DOTALL)
    package = (FOLDER / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.bundle.min.mjs").as_uri()
    digest = hashlib.sha256(IMAGES.read_bytes()).hexdigest() if right else "0" * 64
    page = f"""
import {{ readFileSync }} from "node:fs";
import {{ webcrypto }} from "node:crypto";
globalThis.crypto ??= webcrypto;
globalThis.fetch = async (url) => new Response(readFileSync(url));
{code.replace("onnxruntime-web/wasm", package)}
ort.env.wasm.numThreads = 1; // its default asks a browser for the number of cores
console.log((await openVerified({str(IMAGES)!r}, {digest!r})).outputNames);
"""
    (tmp_path / "page.mjs").write_text(page)
    done = subprocess.run(["node", tmp_path / "page.mjs"], capture_output=True, text=True, timeout=60, check=False)
    if right:
        assert (done.returncode, done.stdout.strip()) == (0, "[ 'Identity' ]"), done.stderr
    else:
        assert done.returncode != 0 and f"expected SHA-256 {'0' * 64}, got " in done.stderr
