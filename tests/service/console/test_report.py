"""The report of a slim base on the command line, as the console shows it."""

import json
from collections.abc import Callable

import httpx
from typer.testing import CliRunner

from service.cli import app


def test_the_report_of_a_slim_base_is_printed_for_people_and_for_programs(
    demo: httpx.Client, slim: Callable[..., None]
):
    slim("thin", delta=0.25)
    runner = CliRunner(env={"GRAFTWORK_URL": str(demo.base_url)})
    words = ["bases", "report", "thin"]
    told = runner.invoke(app, words).stdout
    assert "+0.250 nats per token over demo" in told
    assert "perplexity per word 101.2 (was 90.5)" in told
    assert "1.500" in told  # the loss with the carried adapter
    assert json.loads(runner.invoke(app, [*words, "--json"]).stdout)["delta_nats"] == 0.25
    refused = runner.invoke(app, ["bases", "report", "demo"])
    assert refused.exit_code == 1
    assert "no report" in refused.stderr
