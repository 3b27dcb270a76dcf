"""What changing rollouts needs, put together once by the controller."""

from dataclasses import dataclass

from modelfleet.registry.context import Registry
from modelfleet.rollout.desired.documents import Desk
from modelfleet.signer.keys import Signer


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What changing rollouts needs: the registry, and the director's key for the documents."""

    registry: Registry
    director: Signer

    def desk(self) -> Desk:
        """Return what writes documents under the trust policy as it is now."""
        return Desk(self.registry.tenant, self.director, self.registry.repository.policy().epoch)
