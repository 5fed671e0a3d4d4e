# Sourced by the other scripts: go to the repository root, have the data, an environment, and the packages.
# An active environment that has the packages is used and left as it is; else .venv is, made when absent, and only there
# is anything installed. Arguments: the lock files. needs_data=(NAME ... [flags]), where it is set: missing datasets are
# reported first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lacking() {  # the packages of lock files that the active interpreter lacks, or has in another version
    python - "$@" <<'END'
import importlib.metadata, sys
there = {package.name.lower().replace("_", "-"): package.version for package in importlib.metadata.distributions()}
wanted = dict(line.split("==") for path in sys.argv[1:] for line in open(path).read().split() if "==" in line)
print(*[f"{name}=={wanted[name]}" for name in wanted if there.get(name, "").split("+")[0] != wanted[name]])
END
}

interpreter="${PYTHON:-python3}"
[ ! -e .venv/bin/activate ] || interpreter=.venv/bin/python
"$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: Python 3.11 or newer is needed; remove .venv and set PYTHON=/path/to/python3" >&2; exit 2; }
[ -z "${needs_data+set}" ] || "$interpreter" -m data.registry "${needs_data[@]}"

active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" lacks=all
if [ -n "$active" ] && [ ! "$active" -ef .venv ]; then
    lacks="$(lacking "$@" || echo "Python 3.11")"
    [ -z "$lacks" ] || echo "note: $active is left as it is and .venv is used: it lacks $lacks" >&2
fi
if [ -n "$lacks" ]; then
    [ -e .venv/bin/activate ] || "$interpreter" -m venv .venv
    . .venv/bin/activate
    installed=".venv/cost-$(cat "$@" | cksum | tr ' ' -)"
    if [ ! -e "$installed" ]; then
        echo "installing packages from $*"
        python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
        touch "$installed"
    fi
fi
