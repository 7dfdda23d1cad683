"""What a tenant may take, and what it has taken."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Most = Annotated[int | None, Field(ge=0, lt=1 << 60)]


class Quota(BaseModel):
    """The most of each that a tenant may take; None stands for no limit.

    What is not set in one tenant's quota is as for all (`over`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: _Most = Field(None, description="of any kind")
    tokens_per_minute: _Most = Field(None, description="of prompts and answers together")
    concurrent_requests: _Most = Field(None, description="open at a time")
    concurrent_jobs: _Most = Field(None, description="queued or running")
    stored_bytes: _Most = Field(None, description="of texts, adapters, generators and slim bases")

    def over(self, others: "Quota") -> "Quota":
        """This quota, and that of others where it says nothing."""
        return others.model_copy(update=self.model_dump(exclude_unset=True))


UNLIMITED = Quota()
