# Sourced by demo.sh and test.sh: makes or reuses .venv and installs the package into it.
# `extras` is set by the caller: "" or "[dev]". Does nothing when pyproject.toml, the constraints and the
# Python version are as at the last time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
if [ ! -x "$python" ]; then
  python3 -m venv .venv
fi
stamp=.venv/oseg-video-installed
state="$("$python" -V) $(cat pyproject.toml scripts/constraints.txt | sha256sum | cut -d' ' -f1)"
# The developer's installation contains the user's.
if ! grep -qsxF "$state $extras" "$stamp" && ! { [ -z "$extras" ] && grep -qsxF "$state [dev]" "$stamp"; }; then
  "$python" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".$extras"
  echo "$state $extras" > "$stamp"
fi
