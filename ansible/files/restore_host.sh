#!/bin/bash
# Unpacks an archive of backup_host.sh on a host that has no chain and no keys; never over them.
#   restore_host.sh look ID             says what there is: nothing, begun, done (both of this backup), or living
#   restore_host.sh unpack ID ARCHIVE   and the users geth, ipfs and fl-node must exist
# An unpacking that was interrupted is begun again; one that is done changes nothing.
set -euo pipefail
umask 022
mark=/etc/fl-testbed/restored
keys=(/var/lib/geth/keystore /var/lib/geth/geth /var/lib/ipfs/config /var/lib/fl-node/role.key)

look() {
	local file
	case $(cat "$mark" 2>/dev/null) in
	"$1 done") echo done && return ;;
	"$1 begun") echo begun && return ;;
	esac
	for file in "${keys[@]}"; do
		if [ -e "$file" ]; then echo living && return; fi
	done
	echo nothing
}

state=$(look "$2")
if [ "$1" = look ]; then
	echo "$state"
	exit
fi
[ "$state" != done ] || exit 0
[ "$state" != living ] || { echo "the host has a chain or keys already" >&2 && exit 1; }
mkdir -p "${mark%/*}"
echo "$2 begun" >"$mark"
rm -rf /var/lib/geth /var/lib/ipfs /var/lib/fl-node /etc/geth /etc/fl-node
tar --extract --same-owner --preserve-permissions --directory / --file "$3"
sync
echo "$2 done" >"$mark.new"
mv "$mark.new" "$mark"
echo restored
