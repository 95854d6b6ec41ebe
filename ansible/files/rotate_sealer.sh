#!/bin/bash
# rotate_sealer.sh create: creates a sealing account beside the one in use and prints its address
# rotate_sealer.sh use:    Geth seals with it from now on; the old key is kept in /var/lib/geth/retired
set -euo pipefail
umask 077
shopt -s nullglob
folder=/var/lib/geth next=/var/lib/geth/next
as() { runuser --user=geth -- "$@"; }

cd /
files=("$next"/keystore/UTC--*)
if [ "$1" = create ]; then
	if [ ${#files[@]} = 0 ]; then
		as /usr/local/bin/geth account new --datadir "$next" --lightkdf --password "$folder/password" >/dev/null
		files=("$next"/keystore/UTC--*)
	fi
	echo "0x${files[0]##*--}"
	exit
fi

old=$(sed -n 's/.*"sealer": "\(0x[0-9a-fA-F]*\)".*/\1/p' "$folder/public.json")
new=0x${files[0]##*--}
as cp "${files[0]}" "$folder/keystore/"
sed "s/$old/$new/" "$folder/public.json" >"$folder/public.json.new"
chown geth:geth "$folder/public.json.new"
# From here on site.yml completes what is interrupted.
mv "$folder/public.json.new" "$folder/public.json"
sed -i "s/$old/$new/g" /etc/systemd/system/geth.service
as mkdir -p "$folder/retired"
for file in "$folder/keystore"/UTC--*--"${old#0x}"; do as mv "$file" "$folder/retired/"; done
rm -r "$next"
systemctl daemon-reload
systemctl restart geth.service
