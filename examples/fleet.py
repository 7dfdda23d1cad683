"""From a base and its adapters to a slim model that answers: one script, against a running server.

    graftwork serve                                      # in another terminal
    python examples/fleet.py BASE_DIRECTORY ADAPTER_DIRECTORY... \
        --calibration text.txt --evaluation held-out.txt

It uploads the adapters and the texts, prunes, waits, prints what it cost, and asks the slim base
with each adapter, and with all of them at once, through OpenAI's client.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

from service.client import Client, Refused

URL = os.environ.get("GRAFTWORK_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GRAFTWORK_API_KEY", "none")


def main() -> None:
    options = parse()
    name, adapters = options.name, {path.name: path for path in options.adapters}
    with Client(URL) as client:
        register(client, name, options.base, adapters)
        recipe = recipe_of(client, options)
        job = wait(client, client.submit(recipe)["id"])
        show(client.report(job["id"]))
        until_served(client, recipe["name"])
    ask(recipe["name"], sorted(adapters), options.prompt)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", type=Path, help="a checkpoint on the server's disk")
    parser.add_argument("adapters", type=Path, nargs="+", help="LoRAs as PEFT saves them")
    parser.add_argument("--name", default="own", help="of the base")
    parser.add_argument("--target", type=float, default=0.25, help="fraction of the body to remove")
    parser.add_argument("--calibration", type=Path, required=True, help="a text")
    parser.add_argument("--evaluation", type=Path, required=True, help="another text")
    parser.add_argument("--sequences", type=int, default=128, help="of each text")
    parser.add_argument("--prompt", default="Once upon a time")
    return parser.parse_args()


def register(client: Client, name: str, base: Path, adapters: dict[str, Path]) -> None:
    """Make base and adapters known, unless they are."""
    try:
        client.add_base(name, base.absolute())
        for adapter, directory in adapters.items():
            client.upload_adapter(adapter, name, directory)
    except Refused as error:
        if error.code != "conflict":
            raise
        print(f"going on with what is there: {error}")


def recipe_of(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """The best that takes minutes: scores and a refit in closed form, adapters refit as well."""

    def text(purpose: str, path: Path) -> dict[str, Any]:
        uploaded = client.upload_text(path, purpose)
        return {"file": uploaded["id"], "sequences": options.sequences}

    return {
        "name": f"{options.name}-slim",
        "base": options.name,
        "target": options.target,
        "criterion": {"name": "obs"},
        "recovery": [{"name": "closed_form"}],
        "carry": "refit",
        "calibration": text("calibration", options.calibration),
        "evaluation": text("evaluation", options.evaluation),
    }


def wait(client: Client, id: str) -> dict[str, Any]:
    """Follow a job to its end."""
    for event in client.events(id):
        if event["type"] not in ("progress", "metrics"):
            print(event["message"])
    job = client.job(id)
    if job["status"] != "succeeded":
        raise SystemExit(f"{id} {job['status']}: {(job['error'] or {}).get('message')}")
    return job


def show(report: dict[str, Any]) -> None:
    before, after = report["dense"]["size"]["parameters"], report["slim"]["size"]["parameters"]
    print(f"{after:,} of {before:,} parameters, {report['delta_nats']:+.3f} nats per token")
    for adapter in report["adapters"]:
        if adapter["dense_adapter"] is not None:
            losses = f"{adapter['dense_adapter']:.3f} -> {adapter['slim_adapter']:.3f}"
            print(f"  {adapter['name']}: loss {losses}")


def until_served(client: Client, base: str) -> None:
    while not any(model["id"] == base and model["ready"] for model in client.models()):
        time.sleep(1)


def ask(base: str, adapters: list[str], prompt: str) -> None:
    """The slim base alone, with each adapter, and with equal parts of all."""
    together = base + "".join(f"+{name}:{1 / len(adapters):.3f}" for name in adapters)
    openai = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    for model in (base, *(f"{base}+{name}" for name in adapters), together):
        answer = openai.completions.create(model=model, prompt=prompt, max_tokens=32, temperature=0)
        print(f"{model}: {answer.choices[0].text!r}")


if __name__ == "__main__":
    main()
