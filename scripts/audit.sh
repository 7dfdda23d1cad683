#!/usr/bin/env bash
# Write a bill of materials of what is installed, and tell of known vulnerabilities in it.
# Neither ends a build: an advisory of today is no fault of today's change.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
.venv/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file build/sbom.json .venv/bin/python
echo "build/sbom.json: $(grep -c '"purl"' build/sbom.json) components"
if findings=$(.venv/bin/pip-audit --progress-spinner off --timeout 10 2>&1); then
    echo "no known vulnerabilities in what could be looked up"
elif grep -qiE 'connection|timed out|resolve' <<<"$findings"; then
    echo "vulnerabilities: skipped, the database cannot be reached"
else
    echo "$findings"
fi
