"""All settings, in one place: environment variables GRAFTWORK_*, each with a working default."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.quotas import Quota


class Settings(BaseSettings):
    """Read from the environment; nested nothing, so every name is GRAFTWORK_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="GRAFTWORK_", frozen=True)

    home: Path = Field(Path(".graftwork"), description="artifacts, adapters, files, sockets, logs")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    metrics_open: bool = Field(False, description="let /metrics be read without an API key")
    database_url: str | None = Field(
        None, description="catalog and jobs; SQLite below `home` when absent, or postgresql://…"
    )
    worker: bool = Field(True, description="let `graftwork serve` start a worker of its own")
    stage_threads: int = Field(0, ge=0, description="threads of a job's stage; 0: all cores")
    engine_max_loras: int = Field(8, ge=1, description="adapters active in one batch")
    engine_max_cpu_loras: int = Field(64, ge=1, description="adapters an engine holds in memory")
    engine_max_lora_rank: int = Field(64, ge=1)
    composition_limit: int = Field(
        32, ge=1, description="compositions that an engine keeps loaded, pinned ones aside"
    )
    composition_disk_bytes: int = Field(
        4 << 30, ge=0, description="adapters built for compositions, the oldest going first"
    )
    composition_memory: Path = Field(
        Path("/dev/shm"), description="a folder on tmpfs; where it is not there, nothing is kept"
    )
    composition_memory_bytes: int = Field(
        256 << 20, ge=0, description="adapters kept in it, never more than half of it; 0: none"
    )
    composition_repeats: int = Field(
        0, ge=0, description="requests that make a composition one plain adapter; 0: never"
    )
    composition_repeat_seconds: float = Field(
        600.0, gt=0, description="the time within which they must come"
    )
    engine_max_model_len: int | None = Field(None, ge=16, description="the base's own when absent")
    engine_kv_cache_bytes: int = Field(1 << 28, ge=1 << 20, description="KV cache of a CPU engine")
    engine_gpu_memory: float = Field(
        0.4, gt=0, le=1, description="fraction of a GPU's memory that each engine on it takes"
    )
    engine_concurrent_requests: int = Field(
        256, ge=1, description="of one engine, at a time; more of them wait in the gateway"
    )
    engine_queue_requests: int = Field(
        1024, ge=1, description="that wait for one engine; more of them are refused"
    )
    request_timeout: float | None = Field(
        None, gt=0, description="seconds until a request is answered to its end; no limit if absent"
    )
    stall_timeout: float = Field(
        30.0, gt=0, description="seconds that a client may not read, or not send what it announced"
    )
    drain_delay: float = Field(
        0.0, ge=0, description="seconds from SIGTERM, when /ready says no, to the last new request"
    )
    drain_timeout: float = Field(
        20.0, ge=0, description="seconds that open requests get after that"
    )
    engine_probe_seconds: float = Field(
        15.0, gt=0, description="silence after which an engine is asked for a token"
    )
    engine_hang_seconds: float = Field(
        60.0, gt=0, description="without any token after that, until it is started again"
    )
    engine_threads: int = Field(1, ge=1, description="OpenMP threads of a CPU engine")
    engine_start_timeout: float = Field(300.0, gt=0, description="seconds until ready")
    engine_command: str = Field(
        "", description="what is started in the place of vLLM, with vLLM's arguments"
    )
    engine_args: str = Field("", description="further arguments for vLLM, as on its command line")
    tenant_requests_per_minute: int | None = Field(
        None, ge=1, description="of each tenant; no limit when absent"
    )
    tenant_tokens_per_minute: int | None = Field(
        None, ge=1, description="of each tenant, prompts and answers; no limit when absent"
    )
    tenant_concurrent_requests: int | None = Field(
        None, ge=1, description="of each tenant, open at a time; no limit when absent"
    )
    tenant_concurrent_jobs: int | None = Field(
        None, ge=1, description="of each tenant, queued or running; no limit when absent"
    )
    tenant_stored_bytes: int | None = Field(
        None, ge=1, description="of each tenant, uploads and what jobs made; no limit when absent"
    )
    upload_limit_bytes: int = Field(2 << 30, ge=1 << 10, description="multipart bodies")
    body_limit_bytes: int = Field(32 << 20, ge=1 << 10, description="all other bodies")

    @property
    def quota(self) -> Quota:
        """Of every tenant that has none of its own."""
        return Quota(
            requests_per_minute=self.tenant_requests_per_minute,
            tokens_per_minute=self.tenant_tokens_per_minute,
            concurrent_requests=self.tenant_concurrent_requests,
            concurrent_jobs=self.tenant_concurrent_jobs,
            stored_bytes=self.tenant_stored_bytes,
        )

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        if self.database_url is None:
            return f"sqlite:///{self.home.absolute() / 'graftwork.db'}"
        return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def adapters(self) -> Path:
        return self.home / "adapters"

    @property
    def files(self) -> Path:
        return self.home / "files"

    @property
    def datasets(self) -> Path:
        """Folders of text that recipes name; whoever runs the server puts them there."""
        return self.home / "datasets"

    @property
    def hub(self) -> Path:
        """What recipes named of the Hugging Face hub's data sets."""
        return self.home / "hub"

    @property
    def jobs(self) -> Path:
        """Working directories of unfinished jobs."""
        return self.home / "jobs"

    @property
    def quarantine(self) -> Path:
        """Content that was found damaged, each with the reason."""
        return self.home / "quarantine"

    @property
    def run(self) -> Path:
        """Sockets and logs of engines."""
        return self.home / "run"
