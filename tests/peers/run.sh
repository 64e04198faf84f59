#!/usr/bin/env bash
# Compare with TRL in a throw-away environment: bash tests/peers/run.sh [python]
# Exits non-zero where a difference is beyond its tolerance.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$root"
bash tests/peers/environment.sh "$folder" "${1:-python3}"

# from the source tree: nothing of the checkout is installed, or changed
export PYTHONPATH="$root" HF_HUB_OFFLINE=1
"$folder/venv/bin/python" tests/peers/compare.py "$folder"
"$folder/venv/bin/python" -m tests.peers.step "$folder/step" --tiny --out "$folder/report"
