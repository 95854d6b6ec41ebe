#!/bin/bash
# Downloads packages with all that they depend on, as files. Arguments: folder, packages.
set -euo pipefail
folder=$1
shift
mkdir -p "$folder"
cd "$folder"
rm -f ./*.deb
apt-get update --quiet
all=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
	--no-enhances "$@" | grep '^[a-z0-9]' | sort -u)
for package in $all; do
	# Some names are virtual packages.
	candidate=$(LC_ALL=C apt-cache policy "$package" | sed -n 's/^  Candidate: \([^(]\)/\1/p')
	if [ -n "$candidate" ]; then
		apt-get download --quiet "$package"
	else
		echo "virtual package: $package"
	fi
done
