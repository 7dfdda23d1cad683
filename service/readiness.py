"""What keeps the gateway from serving everything that it should."""

from sqlalchemy.exc import SQLAlchemyError

from service.catalog import Catalog
from service.connections import Drain
from service.engines import Engines
from service.tenants import mark


def waiting(catalog: Catalog, engines: Engines, drain: Drain) -> dict[str, str]:
    """What is not ready, and its state; empty when everything is."""
    if drain.begun:
        return {"gateway": "stopping"}
    try:
        served = catalog.every_base(serve=True)
    except SQLAlchemyError:
        return {"database": "unreachable"}
    states = engines.states()
    return {
        f"engine {base.name if base.shared else mark(base.tenant, base.name)}": states[
            base.id
        ].state
        if base.id in states
        else "absent"
        for base in served
        if not is_ready(engines, base.id)
    }


def is_ready(engines: Engines, base: str) -> bool:
    """Whether the engine of a base takes requests."""
    status = engines.states().get(base)
    return status is not None and status.state == "ready"
