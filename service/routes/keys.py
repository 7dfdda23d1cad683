"""API keys: create, list, rotate, revoke; only `create` and `rotate` ever show a key."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from pruning.recipe import Name
from service.dependencies import AuthenticatorDep, CatalogDep, require
from service.keys import Key
from service.tenants import SCOPES, Scope

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[require("admin")])

Days = Annotated[float, Field(gt=0, le=3650)]


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenant: Name
    name: str = Field("", max_length=255, description="for people")
    scopes: tuple[Scope, ...] = Field(SCOPES[:3], min_length=1)
    days: Days | None = Field(None, description="until it expires; never when absent")


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grace_seconds: int = Field(0, ge=0, le=30 * 86400, description="that the old key stays valid")


class KeyObject(BaseModel):
    """`prefix` is how the key begins; times are Unix seconds."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant: str
    name: str
    prefix: str
    scopes: list[Scope]
    created: int
    expires: int | None
    revoked: int | None
    last_used: int | None

    @classmethod
    def of(cls, key: Key) -> "KeyObject":
        return cls(
            id=key.id,
            tenant=key.tenant,
            name=key.name,
            prefix=key.prefix,
            scopes=list(key.scopes),
            created=key.created,
            expires=key.expires,
            revoked=key.revoked,
            last_used=key.used,
        )


class SecretKey(KeyObject):
    """`key` is shown this once."""

    key: str


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyObject]


@router.post("", status_code=201)
def create_key(new: NewKey, catalog: CatalogDep) -> SecretKey:
    """Create a key for a tenant."""
    expires = None if new.days is None else int(time.time() + new.days * 86400)
    return _shown(*catalog.add_key(new.tenant, new.name, new.scopes, expires))


@router.get("")
def list_keys(catalog: CatalogDep, tenant: str | None = None) -> KeyList:
    """List the keys, of one tenant or of all, revoked ones included."""
    return KeyList(data=[KeyObject.of(key) for key in catalog.keys(tenant)])


@router.post("/{id}/rotate", status_code=201)
def rotate_key(
    id: str, rotation: Rotation, catalog: CatalogDep, authenticator: AuthenticatorDep
) -> SecretKey:
    """Replace a key by one with the same rights."""
    successor = catalog.rotate_key(id, rotation.grace_seconds)
    authenticator.forget(id)
    return _shown(*successor)


@router.delete("/{id}")
def revoke_key(id: str, catalog: CatalogDep, authenticator: AuthenticatorDep) -> KeyObject:
    """End a key at once."""
    key = catalog.revoke_key(id)
    authenticator.forget(id)
    return KeyObject.of(key)


def _shown(key: Key, text: str) -> SecretKey:
    return SecretKey(**KeyObject.of(key).model_dump(), key=text)
