#!/bin/bash
# Installs packages, with what they depend on, from a folder of .deb files and from nowhere else. Arguments: folder, packages.
# The folder has a list of digests, SHA256SUMS: a file that it does not list is removed, one that it lists must have its digest.
# The folder becomes a repository, so that apt installs what is missing and leaves the rest as it is.
set -euo pipefail
umask 022 # the host's own may be stricter, and apt reads it as a user of its own
cd "$1"
shift
for file in *.deb; do
	cut -c67- SHA256SUMS | grep -qxF -- "$file" || rm -- "$file"
done
sha256sum --check --strict --quiet SHA256SUMS
for file in *.deb; do
	dpkg-deb --field "$file"
	printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$file" "$(stat --format=%s "$file")" "$(sha256sum "$file" | cut -c1-64)"
done >Packages
# Trusted, for what the files are was checked above.
echo "deb [trusted=yes] file:$PWD ./" >sources.list
mkdir -p lists/partial
own=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$PWD/lists")
apt-get "${own[@]}" --quiet update
DEBIAN_FRONTEND=noninteractive apt-get "${own[@]}" --quiet --yes --no-install-recommends install "$@"
