"""Where the text of a recipe comes from, in names; the gateway turns them to paths (torch-free)."""

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$"  # of bases and adapters: no '/', '+', ':' or '@'
Name = Annotated[str, Field(pattern=NAME)]

DATASET = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,95}(/[a-zA-Z0-9][a-zA-Z0-9._-]{0,95})?$"
ROW = ("prompt", "completion")  # what each line of an adapter's own text has


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} does not stay inside the data set")
    return path


class Origin(BaseModel):
    """One file of text: uploaded, part of a data set, or what an adapter was trained on.

    Plain text, or lines of JSON of which `field` names what is read, several in their order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = Field(None, description="id of an uploaded file (UTF-8)")
    dataset: str | None = Field(
        None,
        pattern=DATASET,
        description="a folder of the server's data sets, or a data set of the Hugging Face hub",
    )
    part: Annotated[str, AfterValidator(_inside)] | None = Field(
        None, description="the file of the data set, such as train.jsonl"
    )
    revision: str = Field("main", max_length=200, description="of a data set of the hub")
    adapter: Name | None = Field(None, description="an adapter of the base: its calibration.jsonl")
    field: str | tuple[str, ...] | None = Field(
        None, description="of each line of JSON; plain text if not given"
    )

    @model_validator(mode="after")
    def _whole(self) -> "Origin":
        if (self.dataset is None) != (self.part is None):
            raise ValueError("dataset and part go together: a data set, and one of its files")
        if self.adapter is not None and self.field is not None:
            raise ValueError("an adapter's text has fields of its own; leave field out")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """What is read of each line of JSON; empty for plain text."""
        if self.adapter is not None:
            return ROW
        return (self.field,) if isinstance(self.field, str) else self.field or ()

    @property
    def place(self) -> str:
        """The entry that names the file."""
        return "adapter" if self.adapter else "file" if self.file else "part"

    @property
    def given(self) -> int:
        """How many places are named; one, but for a text that has several sources."""
        return sum(place is not None for place in (self.file, self.dataset, self.adapter))


class Source(Origin):
    """One of several origins of a text, and how much of the text it is."""

    weight: float = Field(1, gt=0, description="sequences are drawn in proportion")

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if self.given != 1:
            raise ValueError("give one of file, dataset and adapter")
        return self
