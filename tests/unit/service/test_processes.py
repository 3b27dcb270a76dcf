"""Several processes of the service: a name each, one signer for each folder, builds that people can see and steer."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.registry import build
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.registry.tables import AuditRecord, Variant, Version, Worker
from modelfleet.registry.waiting import waiting_of
from modelfleet.service import job_control
from modelfleet.service.compose import kinds_of
from modelfleet.service.errors import NameTakenError, SettingsError
from modelfleet.service.jobs import Jobs
from modelfleet.service.presence import Presence
from modelfleet.service.settings import Settings
from modelfleet.service.shared_signer import SharedSigner
from modelfleet.service.workflows import Work
from tests.unit.registry.conftest import Fleet, fleet, make_fleet, template
from tests.waiting import until

__all__ = ["fleet", "make_fleet", "template"]  # fixtures


def presence(fleet: Fleet, name: str) -> Presence:
    settings = Settings(data=fleet.folder, tenant="acme", executor=name)
    return Presence(settings, fleet.sessions, name, frozenset({"hw-cpu"}))


def test_two_processes_of_one_name_would_take_each_others_work_so_the_second_is_refused(fleet: Fleet) -> None:
    first = presence(fleet, "one")
    first.start()
    with pytest.raises(NameTakenError, match="MODELFLEET_EXECUTOR"):
        presence(fleet, "one").start()
    presence(fleet, "two").start()
    first.stop()
    presence(fleet, "one").start()  # at once: a restart does not wait for its own entry to be forgotten


def test_a_name_that_another_host_uses_is_refused_until_it_is_silent(fleet: Fleet) -> None:
    first = presence(fleet, "one")
    first.start()
    first.stop()
    with fleet.sessions.begin() as session:
        session.execute(update(Worker).values(host="elsewhere"))
    with pytest.raises(NameTakenError, match="elsewhere"):
        presence(fleet, "one").start()
    with fleet.sessions.begin() as session:
        session.execute(update(Worker).values(host="elsewhere", heard_at=datetime.now(UTC) - timedelta(seconds=31)))
    presence(fleet, "one").start()


def test_a_second_process_uses_the_first_ones_signer_and_runs_its_own_when_that_is_gone(fleet: Fleet) -> None:
    first, second = SharedSigner(fleet.paths.data_dir, "acme"), SharedSigner(fleet.paths.data_dir, "acme")
    first.start()
    second.start()
    try:
        assert first.find_socket() == second.find_socket()
        before = second.find_socket()
        first.stop()
        until(lambda: second.find_socket() != before)
        until(lambda: second.client.status()["tenant"] == "acme")
    finally:
        second.stop()


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"roles": "api,cook"}, "MODELFLEET_ROLES"),
        ({"roles": ""}, "MODELFLEET_ROLES"),
        ({"roles": "api"}, "MODELFLEET_MQTT_URL"),
    ],
)
def test_roles_that_cannot_be_are_refused(values: dict[str, str], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        Settings(**values)  # pyright: ignore[reportArgumentType]


def test_on_postgresql_the_jobs_share_the_registrys_database_and_tenants_share_no_queue() -> None:
    url = "postgresql+psycopg://fleet@db/fleet"
    acme, beta = (Settings(tenant=name, database_url=url) for name in ("acme", "be-ta"))
    assert acme.dbos_url == beta.dbos_url == url
    assert acme.dbos_schema == "jobs_acme"
    assert beta.dbos_schema != Settings(tenant="be.ta", database_url=url).dbos_schema
    assert beta.dbos_schema.startswith("jobs_")
    assert "-" not in beta.dbos_schema


@pytest.fixture
def jobs(fleet: Fleet) -> Iterator[Jobs]:
    """A controller's queue on a real DBOS, and no worker."""
    settings = Settings(data=fleet.folder, tenant="acme", roles="controller", tick_seconds=0.1)
    Presence(settings, fleet.sessions, "modelfleet", frozenset()).start()
    made = Jobs(settings, "modelfleet", all_kinds={"hw-cpu"})
    registry = fleet.registry
    made.start(
        Work(
            variants_of=lambda version_id: build.variant_kinds(registry, version_id),
            convert_variant=lambda version_id, profile: build.convert_variant(registry, version_id, profile),
            release_variant=lambda version_id, profile: build.release_variant(registry, version_id, profile),
            finish_version=lambda version_id: build.finish_version(registry, version_id),
            tick=lambda: None,
            refresh=lambda: None,
        )
    )
    yield made
    made.stop()


def published(fleet: Fleet, jobs: Jobs) -> int:
    """Publish a version, and return its id when its variant waits for a worker."""
    assert fleet.publish(fleet.publication().parts()).status_code == 201
    (version_id,) = fleet.queue.waiting
    jobs.enqueue(version_id)
    until(lambda: len(jobs.jobs()) == 2)
    return version_id


def test_a_build_without_a_worker_says_so_and_can_be_hurried_and_given_up(fleet: Fleet, jobs: Jobs) -> None:
    version_id = published(fleet, jobs)
    with fleet.sessions.begin() as session:
        session.execute(update(Worker).values(heard_at=datetime.now(UTC)))
    (waiting,) = waiting_of(fleet.registry, version_id, datetime.now(UTC))
    assert (waiting.kind, waiting.offered) == ("hw-cpu", False)
    assert "no live one" in waiting.reason
    job = f"build-{version_id}-linux-cpu-float"
    job_control.hurry(fleet.registry, jobs, job, "ada")
    (variant,) = [each for each in jobs.jobs() if each.profile]
    assert (variant.state, variant.queue) == ("WAITING", "hw-cpu"), "it keeps its queue"
    with pytest.raises(ConflictError, match="expected a job that ended"):
        job_control.retry(fleet.registry, jobs, job, "ada")
    job_control.cancel(fleet.registry, jobs, job, "ada")

    def state() -> str:
        with fleet.sessions() as session:
            return session.get_one(Version, version_id).state

    until(lambda: state() == "FAILED")
    with fleet.sessions() as session:
        assert "given up by ada" in (session.query(Variant).one().error or "")
        actions = [row.action for row in session.query(AuditRecord).filter(AuditRecord.action.startswith("job."))]
    assert actions == ["job.hurry", "job.cancel"]
    with pytest.raises(ConflictError, match="publish another"):
        job_control.retry(fleet.registry, jobs, job, "ada")


def test_a_job_that_is_not_there_is_not_found(fleet: Fleet, jobs: Jobs) -> None:
    for job in ("build-99", "build-x", "clock-modelfleet-1", "build-", "", "build-1-../x"):
        with pytest.raises(NotFoundError):
            job_control.cancel(fleet.registry, jobs, job, "ada")


def test_a_kind_that_no_profile_is_built_on_is_refused() -> None:
    settings = Settings(roles="worker", can="hw-cpu,hw-toaster")
    with pytest.raises(SettingsError, match="hw-toaster"):
        kinds_of(settings, load_profiles())
    assert kinds_of(Settings(roles="worker", can="hw-cpu"), load_profiles()) == {"hw-cpu"}
    assert kinds_of(Settings(roles="controller"), load_profiles()) == frozenset()
