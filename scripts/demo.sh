#!/usr/bin/env bash
# Install what is missing and make one guided clip with the model that ships in the package.
# Further arguments go to `oseg-video generate`: scripts/demo.sh --seed 3 --guidance cfg
set -euo pipefail
extras=""
. "$(dirname "$0")/environment.sh"

.venv/bin/oseg-video generate --prompt "a red circle moving right on a white background" \
  --guidance oseg --seed 7 --out outputs/demo.mp4 --overwrite "$@"
