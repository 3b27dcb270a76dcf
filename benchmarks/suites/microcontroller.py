"""`make bench SUITE=microcontroller`: MLPerf Tiny and forests as C on emulated Cortex-M boards, beside what others need.

Boards are QEMU's (`mps2-an386`: Cortex-M4F, `mps3-an547`: Cortex-M55), where one instruction takes 1 ns and SysTick counts them;
the compiler is arm-none-eabi-gcc with -O2. Flash is over the same program without the model; RAM is static data, workspace, the
deepest stack, inputs and outputs. The figures of TensorFlow Lite Micro with CMSIS-NN were measured on the same boards
beforehand (`_mlperf_tiny.py`); emlearn and m2cgen, which make C of trees, are generated, built and run here, in the same harness.
`ARGS=networks` or `ARGS=trees` runs a part.
"""

import sys
from collections.abc import Sequence

from rich.progress import track

from modelfleet.benchmarks.suites._mlperf_tiny import NETWORKS, Network, OnBoard, on_board, on_host
from modelfleet.benchmarks.suites._report import Target, bar, console, show, verdict
from modelfleet.benchmarks.suites._tree_rows import TreeRow, tree_rows

M4, M55 = "cortex-m4", "cortex-m55"
PARTS = ("networks", "trees")
INSTRUCTIONS_LIMIT = {M4: 0.5, M55: 0.7}
KIB = 1024


def main(parts: Sequence[str]) -> int:
    """Measure, show, and return the exit status."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        print(f"expected parts of {PARTS}, got {sorted(unknown)}", file=sys.stderr)
        return 2
    targets: list[Target] = []
    if not parts or "networks" in parts:
        targets += networks()
    if not parts or "trees" in parts:
        targets += trees()
    return verdict("microcontroller", targets)


def networks() -> list[Target]:
    """Show every network on both boards and on this machine; return what is held against targets."""
    pairs = [(network, board) for board in (M4, M55) for network in NETWORKS]
    found = [on_board(*pair) for pair in track(pairs, "networks on boards", console=console, transient=True)]
    show_networks(found)
    show_memory([one for one in found if one.board == M4])
    show_host({network.name: on_host(network) for network in track(NETWORKS, "host", console=console, transient=True)})
    return [target for one in found for target in network_targets(one)]


def network_targets(one: OnBoard) -> list[Target]:
    """Return the targets of a network on a board."""
    what, network, figures = f"{one.network.name} on {one.board}", one.network, one.figures
    found = [
        Target(
            what=f"{what}: instructions beside TFLM", got=one.ratio, limit=INSTRUCTIONS_LIMIT[one.board], unit="times"
        ),
        Target(what=f"{what}: error", got=one.error_lsb, limit=1, unit="LSB"),
    ]
    if one.board == M4:
        ram = 1.1 * network.bound_bytes + figures.io_bytes + KIB
        found.append(Target(what=f"{what}: RAM", got=figures.ram_bytes / KIB, limit=ram / KIB, unit="KiB"))
        flash = network.flash_limit_bytes / KIB
        found.append(Target(what=f"{what}: flash", got=figures.flash_bytes / KIB, limit=flash, unit="KiB"))
    return found


def show_networks(found: Sequence[OnBoard]) -> None:
    """Print instructions, flash and error of every network and board beside TensorFlow Lite Micro's."""
    columns = ("network", "board", "instructions", "per MAC", "TFLM", "ratio", "", "error LSB")
    rows = [
        (
            one.network.name,
            one.board,
            f"{one.instructions:,}",
            f"{one.instructions / one.network.macs:.2f}",
            f"{one.network.tflm_instructions[one.board]:,.0f}",
            f"{one.ratio:.2f}",
            bar(one.ratio, 1.0),
            one.error_lsb,
        )
        for one in found
    ]
    show("int8 networks: instructions of one inference", columns, rows)


def show_memory(found: Sequence[OnBoard]) -> None:
    """Print what the networks take on the Cortex-M4, beside TensorFlow Lite Micro's and the bounds."""
    columns = ("network", "flash KiB", "weights", "TFLM", "RAM KiB", "workspace", "bound", "stack", "I/O", "TFLM")
    rows = [
        (
            one.network.name,
            f"{one.figures.flash_bytes / KIB:.1f}",
            f"{one.network.weights_bytes / KIB:.1f}",
            one.network.tflm_flash_kib,
            f"{one.figures.ram_bytes / KIB:.1f}",
            f"{one.planned_bytes:,}",
            f"{one.network.bound_bytes:,}",
            one.figures.stack_bytes,
            f"{one.figures.io_bytes:,}",
            one.network.tflm_ram_kib,
        )
        for one in found
    ]
    show("int8 networks on cortex-m4: memory (weights and bound: of the network as trained)", columns, rows)


def show_host(found: dict[str, int]) -> None:
    """Print the instructions of the portable C on this machine."""
    macs: dict[str, Network] = {network.name: network for network in NETWORKS}
    rows = [(name, f"{count:,}", f"{count / macs[name].macs:.2f}") for name, count in found.items()]
    show("int8 networks: portable C on this machine (callgrind)", ("network", "instructions", "per MAC"), rows)


def trees() -> list[Target]:
    """Show ensembles as our C and as others'; return what is held against targets."""
    found = tree_rows()
    columns = ("model", "made by", "flash KiB", "RAM bytes", "instructions", "wrong labels")
    rows = [(*_named(row), *_figures(row)) for row in found]
    show("trees on cortex-m4", columns, rows)
    return [target for row in found if row.ours for target in tree_targets(row)]


def tree_targets(row: TreeRow) -> list[Target]:
    """Return the targets of one of our rows."""
    what = f"{row.model}, {row.made_by}"
    assert row.wrong is not None and row.ram_bytes is not None
    found = [Target(what=f"{what}: wrong labels", got=row.wrong, limit=0)]
    if row.within_kib:
        found.append(Target(what=f"{what}: RAM with stack", got=row.ram_bytes, limit=KIB, unit="bytes"))
    return found


def _named(row: TreeRow) -> tuple[str, str]:
    return row.model, f"[bold]{row.made_by}[/bold]" if row.ours else row.made_by


def _figures(row: TreeRow) -> tuple[str, str, str, str]:
    if row.flash_bytes is None or row.ram_bytes is None or row.instructions is None:
        return row.refusal, "", "", ""
    wrong = "" if row.wrong is None else f"{row.wrong} of {row.samples}"
    return f"{row.flash_bytes / KIB:.1f}", f"{row.ram_bytes:,}", f"{row.instructions:,}", wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
