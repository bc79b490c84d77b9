#!/usr/bin/env bash
# What the tests use of the system, as Debian's packages. As root it installs what is missing; else it says what that is,
# and fails.
set -euo pipefail

missing=()
# needs PACKAGE PROGRAM…: the package is missing when none of the programs is there.
needs() {
    local package=$1
    shift
    command -v "$@" >/dev/null || missing+=("$package")
}

# Both, without which crates that are written in C do not build.
command -v cc >/dev/null || missing+=(gcc libc6-dev)
# For the CUDA kernels on the CPU.
needs g++ g++
command -v curl >/dev/null || missing+=(curl ca-certificates)
needs python3 python3
# Debian's python3 comes without what makes an environment.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# In front of the server in some tests. The package also starts it as a service, where there are services.
needs nginx-light nginx /usr/sbin/nginx
# Makes the certificate for nginx's part in TLS.
needs openssl openssl
needs prometheus promtool
# A wall clock that jumps, for the drills.
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (Debian's names)"
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
timeout 300 apt-get update -q
timeout 300 apt-get install -q -y --no-install-recommends "${missing[@]}"
