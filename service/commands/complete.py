"""What a shell completes: names that the server knows, or nothing where there is no server."""

import os

from service.client import Client, ClientError


def names(what: str, incomplete: str) -> list[str]:
    """Ids of `what` (bases, adapters, aliases or jobs) that begin like this."""
    port = os.environ.get("GRAFTWORK_PORT", "8000")
    try:
        with Client(os.environ.get("GRAFTWORK_URL", f"http://127.0.0.1:{port}")) as client:
            found = client.all_jobs(100) if what == "jobs" else getattr(client, what)()
    except ClientError:
        return []
    return [row["id"] for row in found if row["id"].startswith(incomplete)]
