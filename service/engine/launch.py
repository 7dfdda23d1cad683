"""`python -m service.engine.launch VLLM_ARGUMENTS`: vLLM's API server with our plugins in it."""

import os
import signal
import sys
import threading

PLUGINS = ("graftwork", "graftwork_admin")


def main() -> None:
    """Serve until told to stop; exits with a message when vLLM did not take our plugins."""
    _die_with_parent()
    os.environ["VLLM_PLUGINS"] = ",".join(PLUGINS)
    _require_plugins()
    from vllm.entrypoints.launchers.api_server import entry

    entry.main()


def _die_with_parent() -> None:
    """Kill this whole process group when standard input ends.

    The supervisor holds the other end and never writes, so it ends when the supervisor is gone,
    however it went.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _require_plugins() -> None:
    from vllm.plugins import load_endpoint_plugins, load_general_plugins

    load_general_plugins()
    from service.engine.plugin import missing

    problems = missing()
    if not any(plugin.name == PLUGINS[1] for plugin in load_endpoint_plugins(("generate",))):
        problems.append("admin endpoints")
    if problems:
        sys.exit(
            f"vLLM lacks our {', '.join(problems)}: the entry points of graftwork are missing or "
            "broken (see the log above; `pip install graftwork` puts them in place)"
        )


if __name__ == "__main__":
    main()
