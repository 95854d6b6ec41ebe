#!/bin/bash
# Prints the state of the host's services in one line; fails if its firewall is not complete. Argument: the role's unit.
for unit in geth ipfs "$1"; do
	state=$(systemctl is-active "$unit")
	line+="$unit $state, "
done
geth=$(timeout --foreground 10 geth attach --exec '"block " + eth.blockNumber + ", " + net.peerCount + " Geth peers"' \
	/var/lib/geth/geth.ipc 2>/dev/null | tr -d '"')
peers=$(timeout --foreground 10 runuser --user=ipfs -- env IPFS_PATH=/var/lib/ipfs ipfs swarm peers 2>/dev/null |
	sed 's#.*/##' | sort -u | wc -l)
firewall=$(/usr/local/lib/fl-testbed/fl-firewall check)
status=$?
echo "${line}firewall ${firewall:-not installed}, ${geth:-Geth does not answer}, $peers IPFS peers"
exit $status
