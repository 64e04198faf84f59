#!/usr/bin/env bash
# Time optimizer steps beside TRL's, in a throw-away environment: bash tests/peers/bench.sh python [options of tests.peers.step]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$root"
bash tests/peers/environment.sh "$folder" "$1"
PYTHONPATH="$root" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -m tests.peers.step "$folder/step" "${@:2}"
