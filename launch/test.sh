#!/usr/bin/env bash
# Runs the tests in jaxneg's own virtual environment. Arguments go to pytest: bash launch/test.sh tests/run/test_config.py -x
# Slow tests are left out; bash launch/test.sh -m slow runs them. Tests on real files need JAXNEG_DATA, a folder of them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$0")/setup.sh"
setup_jaxneg test
[ $# -gt 0 ] || set -- --numprocesses=auto
exec .venv/bin/python -m pytest --quiet "$@"
