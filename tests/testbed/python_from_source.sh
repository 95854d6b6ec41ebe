#!/bin/bash
# Builds Debian 12's Python 3.11 on Debian 11, for hosts whose own Python is too old, where uv can fetch none for them.
# Takes minutes. Arguments: the image of a Debian 11 host, the archive to write.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial
apt-get indextargets --format 'deb-src $(REPO_URI) bookworm main' 'Created-By: Packages' | grep 'debian/* bookworm' | sort -u >sources.list
own=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$PWD/lists")
apt-get "${own[@]}" -q=2 update
apt-get "${own[@]}" -q=2 source --download-only python3.11
cat >build <<'BUILD'
apt-get update -q=2
DEBIAN_FRONTEND=noninteractive apt-get install -q=2 --yes --no-install-recommends gcc libc6-dev make xz-utils \
	libbz2-dev libffi-dev liblzma-dev libsqlite3-dev libssl-dev zlib1g-dev
mkdir /build
tar -C /build --strip-components=1 -xf /build-files/python3.11_*.orig.tar.*
cd /build
# Quickly built: the hosts spend their time in TensorFlow.
./configure --prefix=/python --with-ensurepip=install
make --jobs=4 OPT='-DNDEBUG -fwrapv -O1 -w'
make install
rm -rf /python/lib/python3.11/test
/python/bin/python3 -c 'import bz2, ctypes, lzma, sqlite3, ssl, zlib'
tar -C /python -cf /build-files/python.tar .
BUILD
docker run --rm --volume "$work:/build-files" "$1" bash -euo pipefail /build-files/build >log 2>&1 || {
	tail -n 20 log >&2
	exit 1
}
mkdir -p "$(dirname "$2")"
mv python.tar "$2"
