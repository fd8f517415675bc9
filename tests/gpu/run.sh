#!/usr/bin/env bash
# Everything that is measured and tested on a GPU, in nine minutes, from a bare checkout.
#
#   tests/gpu/run.sh [--wheels FOLDER] [OPTIONS OF tests/gpu/run.py]
#   tests/gpu/run.sh --tiny                     tiny shapes, as on a CPU in CI (under two minutes)
#
# FOLDER (or $WHEELS) holds wheels of the packages that the machine lacks. They go into a virtual environment on top of
# the machine's own packages, without a network. Without it, $PYTHON, .venv/bin/python or python3 must have everything.
set -euo pipefail
cd "$(dirname "$0")/../.."

wheels=${WHEELS:-}
if [[ ${1:-} == --wheels ]]; then
    wheels=${2:?--wheels needs a folder}
    shift 2
fi

python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi
if [[ -n $wheels ]]; then
    environment=$(mktemp -d)/venv
    "$python" -m venv --system-site-packages "$environment"
    # If $python is in a virtual environment itself, its packages are not "system" packages: add them by path.
    packages=$("$python" -c 'import site; print("\n".join(site.getsitepackages()))')
    python=$environment/bin/python
    echo "$packages" > "$("$python" -c 'import site; print(site.getsitepackages()[0])')/parent.pth"
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$wheels"/*.whl
fi

export PYTHONPATH=$PWD
exec "$python" -m tests.gpu.run "$@"
