# shellcheck shell=bash
# Sourced by the scripts beside it: goes to the repository's root, makes or reuses .venv, installs jaxneg there.
# setup_jaxneg [EXTRA ...]: the extras to install, as in `setup_jaxneg test`. PYTHON names the interpreter (default: python3).

setup_jaxneg() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || return
  local extras
  extras=$(IFS=,; echo "$*")
  if [ ! -x .venv/bin/python ]; then
    local python=${PYTHON:-}
    if [ -z "$python" ]; then
      for python in python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
      done
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "jaxneg needs Python 3.11 or later, and '${PYTHON:-python3}' is not: set PYTHON=/path/to/python3.11" >&2
      return 2
    fi
    echo "Making .venv with $("$python" --version) ..."
    "$python" -m venv --clear --without-pip .venv
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! .venv/bin/python -m ensurepip >/dev/null 2>&1; then
    echo "jaxneg needs pip in .venv, and this Python cannot make it (Debian: apt install python3-venv)" >&2
    return 2
  fi
  # The stamp holds what was installed: a changed pyproject.toml or other extras install again.
  local stamp wanted
  stamp=.venv/.jaxneg-installed
  wanted="[$extras] $(cksum <pyproject.toml)"
  if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    echo "Installing jaxneg${extras:+[$extras]} into .venv (a minute or two, once) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    echo "$wanted" >>"$stamp"
  fi
}
