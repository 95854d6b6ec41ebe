#!/bin/bash
# Downloads packages with all that they depend on, as files. Arguments: folder, packages.
set -euo pipefail
folder=$1
shift
mkdir -p "$folder"
cd "$folder"
rm -f ./*.deb
apt-get update --quiet
mapfile -t all < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
	--no-enhances "$@" | grep '^[a-z0-9]' | sort -u)
# Some names are virtual, and have no package of their own.
for package in "${all[@]}"; do
	apt-get download --quiet "$package" 2>/dev/null || echo "no package of its own: $package"
done
