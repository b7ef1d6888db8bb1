#!/bin/bash
# The install steps of docker/Dockerfile, in one place: an image runs them as layers, and
# docker/check-install runs the same ones in a clean Debian, where there is no container engine.
#
#   install.sh system         packages of Debian and the user (root)
#   install.sh compiler       what torch.compile needs on GPUs (root; target cuda)
#   install.sh dependencies   the virtual environment: what pyproject.toml wants, as constraints.txt pins it
#   install.sh project        targetsweep itself, into that environment, without touching the rest
#
# Run `dependencies` and `project` in the folder with pyproject.toml. They need Python 3.11 with venv.
# Where packages come from is pip's own configuration: nothing here names a registry.
set -euo pipefail

PREFIX=${PREFIX:-/opt/targetsweep} # the virtual environment; read-only to the user
EXTRAS=${EXTRAS:-cluster}          # extras of pyproject.toml, separated by commas
USER_NAME=sweeper
USER_ID=1000 # fixed: volumes, the Kubernetes manifests and the compose file name it
PYTHON=${PYTHON:-python3}

debian_packages() { # NAME...: installed, without what Debian recommends, and no lists left behind
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -q -y --no-install-recommends "$@"
  rm -rf /var/lib/apt/lists/*
}

system() { # tini reaps Ray's orphans as process 1; KubeRay's probes of a node call wget
  debian_packages ca-certificates tini wget
  getent group "$USER_NAME" >/dev/null || groupadd --gid "$USER_ID" "$USER_NAME"
  getent passwd "$USER_NAME" >/dev/null ||
    useradd --create-home --uid "$USER_ID" --gid "$USER_ID" --shell /bin/bash "$USER_NAME"
  install -d -o "$USER_ID" -g "$USER_ID" -m 0750 /store
}

compiler() { # Triton compiles its launchers on first use
  debian_packages gcc libc6-dev
}

dependencies() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "install.sh: $PYTHON is older than Python 3.11" >&2; exit 2; }
  test -x "$PREFIX/bin/python" || "$PYTHON" -m venv "$PREFIX"
  # Only the names of what is needed: this layer stays while only our own code changes.
  "$PREFIX/bin/python" - "$EXTRAS" >"$PREFIX/requirements.txt" <<'PYTHON'
import sys, tomllib
document = tomllib.load(open("pyproject.toml", "rb"))
project = document["project"]
extras = [name for name in sys.argv[1].split(",") if name]
wanted = document["build-system"]["requires"] + project["dependencies"]
for name in extras:
    wanted += project["optional-dependencies"][name]
print(*wanted, sep="\n")
PYTHON
  "$PREFIX/bin/python" -m pip install --disable-pip-version-check \
    -c constraints.txt -r "$PREFIX/requirements.txt"
}

project() { # the folder stays as it is: a build writes into its source
  local source
  source=$(mktemp -d)
  cp -r pyproject.toml README.md LICENSE orchestrator trainers dashboards sweeps "$source"
  "$PREFIX/bin/python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation \
    "$source"
  rm -rf "$source"
  "$PREFIX/bin/targetsweep" --help >/dev/null
}

test $# -gt 0 || { sed -n '2,11p' "$0" >&2; exit 2; }
for step in "$@"; do
  case $step in
    system | compiler | dependencies | project) "$step" ;;
    *) echo "install.sh: no step named $step" >&2; exit 2 ;;
  esac
done
