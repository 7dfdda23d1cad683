"""Stages in a process of their own: measured, heard, cancelled at once, started from scratch."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pruning.jobs.job import JobFailed
from pruning.jobs.runner import Cancelled, Runner
from pruning.recipe import PruneSpec, Recipe, Text

PIPELINE = """
import json, os, subprocess, sys, time

def large(spec, work, progress):
    print("noise on stdout", flush=True)
    os.write(1, b"noise from native code")
    held = bytearray(200 << 20)
    held[:: 4096] = b"x" * len(held[:: 4096])
    time.sleep(0.3)
    progress(0.5, "half")

def threads(spec, work, progress):
    progress(1.0, os.environ.get("OMP_NUM_THREADS", "all"))

def family(spec, work, progress):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    progress(0.1, str(child.pid))
    time.sleep(600)

def orphan(spec, work, progress):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    progress(1.0, str(child.pid))

def once(spec, work, progress):
    (work / "once").mkdir()
    (work / "once" / "whole").write_text("done")

STAGES = {f.__name__: f for f in (large, threads, family, orphan, once)}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A job's directory; a pipeline of small stages can be imported."""
    (tmp_path / "small_pipeline.py").write_text(PIPELINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    work = tmp_path / "work"
    work.mkdir()
    text = Text(file="file-1")
    recipe = Recipe(name="slim", base="demo", target=0.3, calibration=text, evaluation=text)
    paths = {"base": tmp_path, "calibration": tmp_path, "evaluation": tmp_path}
    spec = PruneSpec(recipe=recipe, adapters={}, **paths)
    (work / "spec.json").write_text(spec.model_dump_json())
    return work


@pytest.fixture
def run(work):
    """Run a stage; what it said, and its usage."""

    def run(stage, threads=0, cancelled=lambda: False):
        said = []
        runner = Runner("small_pipeline", threads)
        usage = runner(stage, work, lambda *progress: said.append(progress), cancelled)
        return SimpleNamespace(said=said, usage=usage)

    return run


def is_alive(pid):
    # a zombie is dead; whoever adopted it has not looked yet
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("", "Z")


def test_time_and_peak_memory_are_measured_and_kept_beside_the_stage(work, run):
    usage = run("large").usage
    assert usage.seconds >= 0.3
    assert 200 << 20 < usage.peak_rss_bytes < 400 << 20
    timing = json.loads((work / "large.timing.json").read_text())
    assert timing == {"seconds": usage.seconds, "peak_rss_bytes": usage.peak_rss_bytes}


def test_progress_is_heard_and_noise_on_stdout_is_not(run):
    assert run("large").said == [(0.5, "half")]


@pytest.mark.parametrize(("threads", "seen"), [(3, "3"), (0, "all")])
def test_threads_are_those_of_the_settings(monkeypatch, run, threads, seen):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run("threads", threads).said == [(1.0, seen)]


def test_cancelling_ends_the_whole_family_at_once(work):
    pids = []

    def heard(_fraction, message):
        pids.append(int(message))

    with pytest.raises(Cancelled):
        Runner("small_pipeline")("family", work, heard, lambda: bool(pids))
    assert not is_alive(pids[0])
    assert not (work / "family.timing.json").exists()


def test_a_process_that_a_stage_leaves_behind_does_not_outlive_it(run):
    pid = int(run("orphan").said[0][1])
    assert not is_alive(pid)


def test_a_listener_that_raises_ends_the_stage(work):
    pids = []

    def heard(_fraction, message):
        pids.append(int(message))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Runner("small_pipeline")("family", work, heard, lambda: False)
    assert not is_alive(pids[0])


def test_a_stage_starts_from_scratch(work, run):
    (work / "once").mkdir()
    (work / "once" / "half").write_text("of an attempt that was killed")
    run("once")
    assert [path.name for path in (work / "once").iterdir()] == ["whole"]


def test_a_stage_that_is_over_keeps_its_outputs_not_its_state_and_is_not_run_again(work, run):
    state = work / "once.state"
    state.mkdir()
    run("once")
    (work / "once" / "later").write_text("what a second run would remove")
    run("once")
    assert sorted(path.name for path in (work / "once").iterdir()) == ["later", "whole"]
    assert not state.exists()


def test_an_unknown_stage_is_our_bug_and_says_no_more_than_that(run):
    with pytest.raises(JobFailed, match="worker's log") as failure:
        run("unheard of")
    assert failure.value.code == "stage_crashed"


def test_a_stage_whose_worker_is_gone_already_does_not_begin(work):
    command = [sys.executable, "-m", "pruning.jobs.stage", "once", str(work)]
    options = ["--pipeline", "small_pipeline", "--parent", str(os.getpid() + 1)]
    stage = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (stage.returncode, "worker is gone" in stage.stderr) == (1, True)
    assert not (work / "once").exists()
