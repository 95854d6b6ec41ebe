#!/bin/sh
# Prints, as JSON, what a playbook needs to know about a host before a run: the role's account, whether the role's unit runs,
# the last run's contract and name, the end of the journal, the number of MNIST's files. The account is empty if the host is not
# provisioned. It is one script because each task takes most of a second on a host.
# before_run.sh UNIT [stop]: with stop, the unit is stopped first.
set -eu
if [ ! -e "/etc/systemd/system/$1" ] || [ ! -e /var/lib/fl-node/account ]; then
	echo '{"account": "", "running": false, "contract": "", "name": ""}'
	exit
fi
[ "${2:-}" != stop ] || systemctl stop "$1"
running=false
case $(systemctl is-active "$1") in
active | activating | reloading | deactivating) running=true ;;
*) [ -z "$(systemctl list-jobs --no-legend "$1")" ] || running=true ;; # it is about to be started
esac
contract=$(sed -n 's/^FL_NODE_CONTRACT=//p' /etc/fl-node/run.env 2>/dev/null || true)
name=
if [ -n "$contract" ]; then
	name=$(grep -lFx "FL_NODE_CONTRACT=$contract" /etc/fl-node/runs/* 2>/dev/null | head -n 1 || true)
fi
cursor=$(journalctl --quiet --lines=0 --show-cursor | sed -n 's/^-- cursor: //p')
mnist=$(find /opt/fl-node/mnist -maxdepth 1 -name '*-ubyte*' 2>/dev/null | wc -l)
printf '{"account": "%s", "running": %s, "contract": "%s", "name": "%s", "cursor": "%s", "mnist": %d}\n' \
	"$(tr -d '[:space:]' </var/lib/fl-node/account)" "$running" "$contract" "${name##*/}" "$cursor" "$mnist"
