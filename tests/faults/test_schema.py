"""Whatever the OpenAPI document allows, and much that it does not: no route breaks or strays.

A longer run: GRAFTWORK_FUZZ_EXAMPLES=1000 python -m pytest tests/faults/test_schema.py
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

EXAMPLES = int(os.environ.get("GRAFTWORK_FUZZ_EXAMPLES", "3"))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.mark.timeout(3600)
def test_every_answer_is_one_that_the_document_describes(
    make_gateway: Callable[..., Any], base_directory: Path, adapter_directory: Path
):
    failures: list[str] = []
    gateway = make_gateway(engine_args="--rate 1e6 --tokens 1")
    gateway.add_base(base_directory)
    adapter = {"name": "sql", "base": "demo", "path": str(adapter_directory)}
    assert gateway.client.post("/v1/adapters", json=adapter).status_code == 201
    asked = {"tenant": "fuzz", "scopes": ["admin"]}
    key = gateway.client.post("/v1/keys", json=asked).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{gateway.port}"
    document = gateway.client.get("/openapi.json").json()
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in GenerationMode:
            play(operation.ok(), mode, url, headers, failures)
    assert not failures, "\n\n".join(failures)


def play(
    operation: Any, mode: GenerationMode, url: str, headers: dict[str, str], failures: list[str]
) -> None:
    """Ask one operation many things; what is wrong with its answers goes into `failures`."""

    @settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=url, headers=headers, checks=CHECKS, timeout=30)

    try:
        ask()
    except BaseExceptionGroup as group:
        failures += [f"{operation.label} {mode}: {error}" for error in group.exceptions]
    except Exception as error:
        if "Unsatisfiable" not in type(error).__name__:
            failures.append(f"{operation.label} {mode}: {type(error).__name__} {error}")
