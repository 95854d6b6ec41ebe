#!/bin/bash
# Stops IPFS and gives it a new swarm key.
set -euo pipefail
umask 077
key=/var/lib/ipfs/swarm.key
digits=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
printf '/key/swarm/psk/1.0.0/\n/base16/\n%s\n' "$digits" >"$key.new"
chown ipfs:ipfs "$key.new"
systemctl stop ipfs.service
mv "$key.new" "$key"
