"""The same on PostgreSQL: two workers, one killed, one job cancelled."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.slow


def binaries():
    """The folder of PostgreSQL's programs, or None."""
    found = shutil.which("initdb")
    if found and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture
def database():
    """The URL of a fresh PostgreSQL server; it refuses to run as root."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    folder = Path(tempfile.mkdtemp(prefix="graftwork-postgres-"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    options = {"user": user.pw_uid, "group": user.pw_gid, "cwd": folder}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    initdb = [programs / "initdb", "-D", folder / "data", "-U", "graftwork", "--auth=trust"]
    subprocess.run([*initdb, "--no-sync"], check=True, capture_output=True, **options)
    settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    with (folder / "log").open("wb") as log:
        command = [programs / "postgres", "-D", folder / "data", "-p", str(port), *settings]
        server = subprocess.Popen(command, stderr=log, **options)
    url = f"postgresql://graftwork@127.0.0.1:{port}/postgres"
    for _ in range(300):
        try:
            psycopg.connect(url).close()
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    yield url
    server.send_signal(signal.SIGINT)
    server.wait()
    shutil.rmtree(folder)


def test_a_killed_workers_job_is_resumed_and_another_is_cancelled(
    site, worker, gateway, create, ended, eventually
):
    site.order("slice", "wait")
    first = create()
    eventually(lambda: "slice" in site.stages(), "slice started")
    site.start_worker()
    second = create(name="other")
    eventually(lambda: site.stages().count("slice") == 2, "the second worker has the second job")
    dying, living = site.workers
    dying.kill()
    dying.wait()
    site.workers.remove(dying)
    assert gateway.post(f"/v1/pruning/jobs/{second}/cancel").json()["status"] == "cancelled"
    eventually(lambda: len(site.work_directories()) == 1, "the cancelled job is gone")
    assert living.poll() is None
    site.release("slice")
    site.start_worker()
    job = ended(first)
    assert job["status"] == "succeeded"
    assert site.stages().count("calibrate") == 2  # once for each job
    assert [path.name for path in site.artifacts()] == [job["result"]["artifact"]]
    assert site.work_directories() == []
    page = gateway.get("/v1/pruning/jobs", params={"limit": 1}).json()
    assert (page["data"][0]["id"], page["has_more"]) == (second, True)
