import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError

from modelfleet.converters.errors import ScanError
from modelfleet.registry import errors, problems
from modelfleet.signer.errors import ReplayError, SignerUnavailableError, UnknownKeyError

SECRET = "/srv/secret/path"


class Body(BaseModel):
    number: int


@pytest.fixture
def answer():
    """Return the answer of an app whose only route raises the error."""

    def ask(error: Exception):
        app = FastAPI()
        problems.install(app)

        @app.get("/")
        def fail() -> None:
            raise error

        return TestClient(app, raise_server_exceptions=False).get("/")

    return ask


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.CardError("x"), 422, "card"),
        (errors.NotFoundError("x"), 404, "not-found"),
        (errors.VersionConflictError("x"), 409, "version-conflict"),
        (errors.UploadTooLargeError("x", 1), 413, "upload-too-large"),
        (errors.UnauthenticatedError("x"), 401, "unauthenticated"),
        (errors.ForbiddenError("x"), 403, "forbidden"),
        (errors.StoreFullError("x"), 507, "store-full"),
        (errors.StoreError("x"), 503, "store"),
        (ScanError("x"), 422, "scan"),
        (ReplayError("x"), 422, "untrusted:replay"),
        (UnknownKeyError("x"), 403, "untrusted:unknown-key"),
        (SignerUnavailableError("x"), 503, "signer-unavailable"),
    ],
)
def test_an_error_is_told_as_its_nearest_classs_problem(answer, error: Exception, status: int, kind: str) -> None:
    found = answer(error)
    assert found.status_code == status
    assert found.headers["content-type"] == "application/problem+json"
    assert found.json()["type"] == f"urn:modelfleet:problem:{kind}"
    assert "x" in found.json()["detail"]


def test_every_error_of_the_registry_has_a_row() -> None:
    def classes(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(below for child in kind.__subclasses__() for below in classes(child))]

    # Another package's base class is raised by nobody; which packages are loaded depends on the tests before.
    raised = [
        kind
        for kind in classes(errors.RegistryError)
        if kind.__module__ == errors.__name__ or not kind.__subclasses__()
    ]
    missing = [
        kind.__name__
        for kind in raised
        if kind not in (errors.RegistryError, errors.AuditError)
        and problems.problem_of(kind.__new__(kind)).status == 500
    ]
    assert missing == []


def test_what_nobody_expected_is_a_bare_500(answer) -> None:
    found = answer(ValueError(SECRET))
    assert found.status_code == 500
    assert found.headers["content-type"] == "application/problem+json"
    assert SECRET not in found.text
    assert "Traceback" not in found.text
    assert "ValueError" not in found.text


def test_a_database_that_does_not_answer_is_told_without_its_statement(answer) -> None:
    found = answer(OperationalError(f"SELECT {SECRET}", {}, Exception(SECRET)))
    assert found.status_code == 503
    assert SECRET not in found.text


def test_all_faults_of_an_error_are_listed(answer) -> None:
    assert answer(errors.BadInputError("two faults", ["a: missing", "b: wrong"])).json()["errors"] == [
        "a: missing",
        "b: wrong",
    ]


def test_requests_that_fastapi_refuses_are_problems_too() -> None:
    app = FastAPI()
    problems.install(app)

    @app.post("/body")
    def take(body: Body) -> None: ...

    client = TestClient(app)
    for found, status in (
        (client.get("/nowhere"), 404),
        (client.get("/body"), 405),
        (client.post("/body", content=b"{"), 422),
        (client.post("/body", json={"number": "many"}), 422),
        (client.post("/body", content=b"[" * 5000), 422),
    ):
        assert found.status_code == status, found.text
        assert found.headers["content-type"] == "application/problem+json"
        assert found.json()["status"] == status
    assert client.get("/body").headers["allow"] == "POST"
    assert client.post("/body", json={}).json()["errors"] == ["body.number: Field required"]


def test_another_package_adds_its_own_rows(answer) -> None:
    class TeapotError(Exception):
        pass

    problems.add_problem(TeapotError, 418, "A teapot")
    found = answer(TeapotError("short and stout"))
    assert (found.status_code, found.json()["title"], found.json()["detail"]) == (418, "A teapot", "short and stout")
