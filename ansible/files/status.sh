#!/bin/bash
# Prints the state of the host's services in one line; fails if its firewall is not complete. Arguments: the role's units, of
# which there are several on a host with several learners. Then it counts them by state, and names those that are not active.
for unit in geth ipfs; do
	state=$(systemctl is-active "$unit")
	line+="$unit $state, "
done
if [ $# = 1 ]; then
	line+="${1%.service} $(systemctl is-active "$1"), "
else
	active=0
	for unit in "$@"; do
		state=$(systemctl is-active "$unit")
		if [ "$state" = active ]; then active=$((active + 1)); else others+="${unit%.service} $state, "; fi
	done
	line+="$active of $# learners active, "
	if [ "$active" != 0 ]; then line+=$others; fi # between runs none is
fi
geth=$(timeout --foreground 10 geth attach --exec '"block " + eth.blockNumber + ", " + net.peerCount + " Geth peers"' \
	/var/lib/geth/geth.ipc 2>/dev/null | tr -d '"')
peers=$(timeout --foreground 10 runuser --user=ipfs -- env IPFS_PATH=/var/lib/ipfs ipfs swarm peers 2>/dev/null |
	sed 's#.*/##' | sort -u | wc -l)
firewall=$(/usr/local/lib/fl-testbed/fl-firewall check)
status=$?
echo "${line}firewall ${firewall:-not installed}, ${geth:-Geth does not answer}, $peers IPFS peers"
exit $status
