#!/bin/bash
# Fetches Python for the hosts, verified by uv, into an archive. Arguments: uv, platform, version, folder of archives.
set -euo pipefail
archive=$4/linux-$2-$3.tar
[ -e "$archive" ] && exit 0
mkdir -p "$4"
folder=$(mktemp -d "$4/new.XXXXXX")
trap 'rm -rf "$folder"' EXIT
case $2 in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac
"$1" python install --quiet --no-bin --install-dir "$folder/all" "cpython-$3-linux-$machine-gnu"
made=("$folder"/all/cpython-*)
tar -C "${made[0]}" -cf "$folder/archive.tar" .
mv "$folder/archive.tar" "$archive"
