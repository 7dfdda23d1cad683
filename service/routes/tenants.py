"""Tenants: what each may take and has taken; quotas are set here, keys under /v1/keys."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from pruning.recipe import Name
from service.catalog import Catalog
from service.dependencies import CatalogDep, JobsDep, PrincipalDep, require
from service.jobs import Jobs
from service.quotas import Quota

router = APIRouter(prefix="/v1", tags=["tenants"])


class Used(BaseModel):
    """What is taken now of what stays."""

    stored_bytes: int
    jobs: int


class TenantObject(BaseModel):
    """`quota` is in force, `own` what of it was set for this tenant; null stands for no limit."""

    id: str
    object: Literal["tenant"] = "tenant"
    quota: Quota
    own: Quota
    used: Used

    @classmethod
    def of(cls, tenant: str, catalog: Catalog, jobs: Jobs) -> "TenantObject":
        view = catalog.of(tenant)
        used = Used(stored_bytes=view.stored_bytes(), jobs=jobs.of(tenant, view).open())
        return cls(id=tenant, quota=view.quota(), own=view.own_quota(), used=used)


class TenantList(BaseModel):
    object: Literal["list"] = "list"
    data: list[TenantObject]


def _name(tenant: Name) -> str:
    return tenant


Tenant = Annotated[str, Depends(_name)]


@router.get("/tenant", dependencies=[require("infer", "adapters", "jobs")])
def get_own_tenant(asks: PrincipalDep, catalog: CatalogDep, jobs: JobsDep) -> TenantObject:
    """What the tenant of this key may take, and has taken."""
    return TenantObject.of(asks.tenant, catalog, jobs)


@router.get("/tenants", dependencies=[require("admin")])
def list_tenants(catalog: CatalogDep, jobs: JobsDep) -> TenantList:
    """Everybody who has a key, a quota or anything else."""
    return TenantList(data=[TenantObject.of(name, catalog, jobs) for name in catalog.tenants()])


@router.get("/tenants/{tenant}", dependencies=[require("admin")])
def get_tenant(tenant: Tenant, catalog: CatalogDep, jobs: JobsDep) -> TenantObject:
    """Look one tenant up; who has nothing yet may take what everybody may."""
    return TenantObject.of(tenant, catalog, jobs)


@router.put("/tenants/{tenant}/quota", dependencies=[require("admin")])
def set_quota(tenant: Tenant, quota: Quota, catalog: CatalogDep, jobs: JobsDep) -> TenantObject:
    """Set what a tenant may take; what is left out is as for all, null is no limit."""
    catalog.of(tenant).set_quota(quota)
    return TenantObject.of(tenant, catalog, jobs)
