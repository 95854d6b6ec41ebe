#!/bin/sh
# Runs on a host: the given public key becomes the only one that may log in as user vagrant.
set -eu
folder=/home/vagrant/.ssh
if [ "$(cat "$folder/authorized_keys" 2>/dev/null)" != "$1" ]; then
	install -d -o vagrant -g vagrant -m 0700 "$folder"
	printf '%s\n' "$1" >"$folder/authorized_keys.new"
	chown vagrant:vagrant "$folder/authorized_keys.new"
	chmod 0600 "$folder/authorized_keys.new"
	mv "$folder/authorized_keys.new" "$folder/authorized_keys"
fi
