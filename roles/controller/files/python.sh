#!/bin/bash
# Fetches Python for the hosts, verified by uv, into an archive. Arguments: uv, platform, version, folder of archives.
set -euo pipefail
export COPYFILE_DISABLE=1 # macOS' tar would add files of its own
archive=$4/linux-$2-$3.tar
[ -e "$archive" ] && exit 0
case $2 in
amd64) machine=x86_64 ;;
arm64) machine=aarch64 ;;
*)
	echo "no Python for platform $2; should be amd64 or arm64" >&2
	exit 1
	;;
esac
mkdir -p "$4"
folder=$(mktemp -d "$4/new.XXXXXX")
trap 'rm -rf "$folder"' EXIT
# In a folder of its own: uv obeys a uv.toml that lies in the working directory.
if ! (cd "$folder" && "$1" python install --no-progress --no-bin --install-dir all "cpython-$3-linux-$machine-gnu") >"$folder/log" 2>&1; then
	reason=$(sed -E 's/^ *(error|Caused by): *//' "$folder/log" | grep . | tail -n 1 || true)
	echo "could not fetch Python $3 for linux-$2: ${reason:-$1 does not run}." \
		"Set UV_PYTHON_INSTALL_MIRROR to a mirror of python-build-standalone's releases, put an archive at $archive," \
		"or install Python 3.11 or newer on the hosts" >&2
	exit 1
fi
made=("$folder"/all/cpython-*)
tar -C "${made[0]}" -cf "$folder/archive.tar" .
mv "$folder/archive.tar" "$archive"
