#!/bin/bash
# rotate_sealer.sh create:   creates a sealing account beside the one in use and prints its address
# rotate_sealer.sh use:      Geth seals with it from now on; the old key is kept in /var/lib/geth/retired
# rotate_sealer.sh complete: does the rest of a use that was interrupted
set -euo pipefail
umask 077
shopt -s nullglob
folder=/var/lib/geth next=/var/lib/geth/next
as() { runuser --user=geth -- "$@"; }

sealer() { sed -n 's/.*"sealer": "\(0x[0-9a-fA-F]*\)".*/\1/p' "$folder/public.json"; }

created() {
	local files=("$next"/keystore/UTC--*)
	if [ ${#files[@]} -gt 0 ]; then echo "0x${files[0]##*--}"; fi
}

use() {
	local old new file
	old=$(sealer) # the new one after an interruption
	new=$(created)
	as cp "$next"/keystore/UTC--*--"${new#0x}" "$folder/keystore/"
	sed "s/$old/$new/" "$folder/public.json" >"$folder/public.json.new"
	chown geth:geth "$folder/public.json.new"
	mv "$folder/public.json.new" "$folder/public.json"
	sed -E -i "s/(--miner.etherbase|--unlock) 0x[0-9a-fA-F]{40}/\1 $new/g" /etc/systemd/system/geth.service
	as mkdir -p "$folder/retired"
	for file in "$folder/keystore"/UTC--*; do
		[ "0x${file##*--}" = "$new" ] || as mv "$file" "$folder/retired/"
	done
	systemctl daemon-reload
	systemctl restart geth.service
	rm -r "$next"
}

cd /
case $1 in
use) use ;;
complete)
	account=$(created)
	if [ -n "$account" ] && [ "$account" = "$(sealer)" ]; then use; fi
	;;
create)
	if [ -z "$(created)" ]; then
		rm -rf "$next"
		as /usr/local/bin/geth account new --datadir "$next" --lightkdf --password "$folder/password" >/dev/null
	fi
	created
	;;
esac
