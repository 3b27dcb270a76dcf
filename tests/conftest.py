"""In CI a skipped test is a failure, unless it is marked `hardware`: what can be installed is installed.

What takes long and resembles its neighbour runs in turns: `in_turn(place, of)` names the commits at which it does (`turns`).
"""

import os
from collections.abc import Iterator

import pytest

from modelfleet.service.database import prepare_database
from tests.postgresql import PostgreSql, postgresql_server
from tests.turns import ALL, turn

_SKIPPED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SKIPPED] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `in_turn` and has not its turn; whoever names a test has it run."""
    if ALL or any("::" in argument for argument in config.args):
        return
    late = [item for item in items if any(turn(of) != place for place, of in map(_place, item.iter_markers("in_turn")))]
    config.hook.pytest_deselected(items=late)
    items[:] = [item for item in items if item not in late]


def _place(mark: pytest.Mark) -> tuple[int, int]:
    return mark.args[0], mark.args[1]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    report = outcome.get_result()
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and item.get_closest_marker("hardware") is None:
        item.config.stash[_SKIPPED].append(f"{item.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    skipped = session.config.stash[_SKIPPED]
    if skipped and os.environ.get("CI") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nskipped in CI, which counts as a failure (mark what needs hardware with `hardware`):")
        for line in skipped:
            print(f"  {line}")


@pytest.fixture(scope="session")
def postgresql_of_worker() -> Iterator[PostgreSql]:
    """A PostgreSQL server for all tests of this process."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def postgresql(postgresql_of_worker: PostgreSql) -> str:
    """The SQLAlchemy URL of a fresh, empty database on a real PostgreSQL."""
    return postgresql_of_worker.new_database()


@pytest.fixture(scope="session")
def schema_of_worker(postgresql_of_worker: PostgreSql) -> str:
    """The name of a database that the migrations have made, to be copied."""
    engine = prepare_database(postgresql_of_worker.new_database())
    engine.dispose()
    return str(engine.url.database)


@pytest.fixture
def migrated_postgresql(postgresql_of_worker: PostgreSql, schema_of_worker: str) -> str:
    """The SQLAlchemy URL of a fresh database with the service's schema on a real PostgreSQL."""
    return postgresql_of_worker.new_database(template=schema_of_worker)
