# Sourced by the other scripts: go to the repository root, have an environment, have the packages.
# Uses the active virtual environment, else .venv, which is made when absent. Arguments: the lock files to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -e .venv/bin/activate ] || "${PYTHON:-python3}" -m venv .venv
    . .venv/bin/activate
fi
python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: Python 3.11 or newer is needed; remove .venv and set PYTHON=/path/to/python3" >&2; exit 2; }

installed="$(python -c 'import sys; print(sys.prefix)')/cost-$(cat "$@" | cksum | tr ' ' -)"
if [ ! -e "$installed" ]; then
    echo "installing packages from $*"
    python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    touch "$installed"
fi
