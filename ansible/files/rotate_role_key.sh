#!/bin/bash
# Gives a role of the host a new account, which gets the old one's ether. The old key is kept in retired/ADDRESS.key.
# One that was interrupted is completed. Argument: the folder of the role's key, /var/lib/fl-node or that of one of several learners.
set -euo pipefail
umask 077
folder=$1
as() { runuser --user=fl-node -- "$@"; }
address_of() { as /opt/fl-node/venv/bin/fl-node key "$1"; }
ether_of() { geth attach --exec "web3.fromWei(eth.getBalance('$1'), 'ether').toFixed(0, 1)" /var/lib/geth/geth.ipc | tr -d '"'; }
write_account() {
	as sh -c 'umask 022; echo "$1" >"$2/.account" && mv "$2/.account" "$2/account"' sh "$1" "$folder"
}

cd /
old=$(address_of $folder/role.key)
account=$(cat $folder/account)
if [ "$account" = "$old" ]; then
	new=$(address_of $folder/role.key.new)
	has=$(ether_of "$new") # on a line of its own: in a condition a failure would not end the script
	if [ "$has" = 0 ]; then
		ether=$(ether_of "$old")
		[ "$ether" -gt 1 ] || { echo "the account $old owns no ether that it could give to a new one; site.yml pays it" >&2 && exit 1; }
		as /usr/local/bin/fl-node fund --key "$folder/role.key" --always --ether $((ether - 1)) "$new" >/dev/null
	fi
	as mkdir -p $folder/retired
	as ln -f $folder/role.key "$folder/retired/$old.key"
	as mv $folder/role.key.new $folder/role.key
fi
write_account "$(address_of $folder/role.key)"
