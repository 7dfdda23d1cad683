"""What the plugin puts into vLLM, looked at without starting an engine."""

import subprocess
import sys


def test_vllm_knows_nothing_of_ours_before_the_plugin_ran_and_everything_after():
    script = (
        "from service.engine.plugin import missing, register\n"
        "print(len(missing()))\nregister()\nregister()\nprint(len(missing()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["5", "0"]
