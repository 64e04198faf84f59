#!/usr/bin/env bash
# Make the throw-away environment of the comparisons with TRL: bash tests/peers/environment.sh folder python
set -euo pipefail
folder=$1
python=$2
cd "$(dirname "$0")/../.."

"$python" -m venv "$folder/venv"
install() { "$folder/venv/bin/pip" install --quiet "$@"; }
install "${TORCH:-$(cat requirements/torch.txt)}"
install --no-deps --require-hashes -r requirements/lock.txt
install --no-deps --require-hashes -r tests/peers/requirements.txt
"$folder/venv/bin/pip" check
install --no-deps --require-hashes -r requirements/embedded.txt
