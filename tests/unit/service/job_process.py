"""A process that runs durable jobs for test_jobs: each effect is a line in a file; `die` ends it in the middle of a step."""

import os
import sys
import threading
from pathlib import Path

from modelfleet.service.jobs import Jobs
from modelfleet.service.settings import Settings
from modelfleet.service.workflows import Work


def main(data: Path, die_in: str) -> None:
    """Build version 7 for two profiles and tick; die inside the build of `die_in`, if it is named."""
    finished, ticked = threading.Event(), threading.Event()

    def note(line: str) -> None:
        with (data / "effects").open("a") as file:
            file.write(line + "\n")

    def build(version_id: int, profile: str) -> None:
        note(f"begin {version_id} {profile}")
        if profile == die_in:
            os._exit(9)
        note(f"built {version_id} {profile}")

    def finish(version_id: int) -> None:
        note(f"finished {version_id}")
        finished.set()

    def tick() -> None:
        note("tick")
        ticked.set()
        raise RuntimeError("a tick that fails must not end the controller")

    work = Work(
        variants_of=lambda _version: [("a", "hw-cpu"), ("b", "hw-cpu")],
        convert_variant=build,
        release_variant=lambda version_id, profile: note(f"released {version_id} {profile}"),
        finish_version=finish,
        tick=tick,
        refresh=lambda: None,
    )
    settings = Settings(data=data, tick_seconds=0.05, build_workers=1)
    jobs = Jobs(settings, settings.executor, kinds={"hw-cpu"})
    jobs.start(work)
    jobs.enqueue(7)
    try:
        assert finished.wait(float(os.environ.get("FINISH_WITHIN", "30")))
        ticked.clear()
        assert ticked.wait(30)
    finally:
        jobs.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
