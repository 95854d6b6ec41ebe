#!/bin/bash
# Prints the state of the host's services in one line, and another one for each role that failed, with its reason; fails if the
# firewall is not complete. Arguments: the role's units, of which there are several on a host with several learners. Then it counts
# those that are active, and names the others.
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
for unit in "$@"; do
	if systemctl is-failed --quiet "$unit"; then
		code=$(systemctl show --property=ExecMainStatus --value "$unit")
		since=$(systemctl show --property=InvocationID --value "$unit")
		reason=$(journalctl --quiet --output=cat "_SYSTEMD_INVOCATION_ID=$since" |
			/usr/local/bin/fl-node logs - --event role_failed | tail -n 1)
		echo "    ${unit%.service} failed with exit code $code${reason:+: $reason}"
	fi
done
exit $status
