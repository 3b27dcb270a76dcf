from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfleet.signer.ceremony import CeremonyResult, create_repository
from tests.unit.signer.samples import TENANT, Keys, new_key


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys(
        director=new_key(), publisher=new_key(), gate=new_key(), anna=new_key(), ben=new_key(), stranger=new_key()
    )


@pytest.fixture
def now() -> datetime:
    """The real clock: python-tuf's client and the signer process judge expiry by it."""
    return datetime.now(UTC)


@pytest.fixture
def fleet(tmp_path: Path, now: datetime) -> CeremonyResult:
    """A tenant's keys and repository with four bins."""
    return create_repository(tmp_path / "data", TENANT, bits=2, approvers=["anna", "ben"], now=now)
