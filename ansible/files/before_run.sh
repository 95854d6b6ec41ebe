#!/bin/sh
# Prints, as JSON, what a playbook needs to know about a host before a run: the host's account and those of its roles, whether a
# unit of them runs, the last run's contract and name, the end of the journal, the number of MNIST's files. The account is empty if
# the host is not provisioned. It is one script because each task takes most of a second on a host.
# before_run.sh [stop] UNIT…: with stop, the units are stopped first. Of several learners the units are fl-learner@ID.service.
set -eu
stop=
if [ "$1" = stop ]; then
	stop=yes
	shift
fi
accounts=
for unit in "$@"; do
	file=$unit
	account=/var/lib/fl-node/account
	case $unit in *@*)
		file=${unit%%@*}@.service
		id=${unit#*@}
		account=/var/lib/fl-node/learners/${id%.service}/account
		;;
	esac
	if [ ! -e "/etc/systemd/system/$file" ] || [ ! -e /var/lib/fl-node/account ] || [ ! -e "$account" ]; then
		echo '{"account": "", "accounts": [], "running": false, "contract": "", "name": ""}'
		exit
	fi
	accounts="$accounts${accounts:+, }\"$(tr -d '[:space:]' <"$account")\""
done
[ -z "$stop" ] || systemctl stop "$@"
running=false
if systemctl is-active "$@" | grep -qxE 'active|activating|reloading|deactivating' ||
	[ -n "$(systemctl list-jobs --no-legend "$@")" ]; then # or one is about to be started
	running=true
fi
contract=$(sed -n 's/^FL_NODE_CONTRACT=//p' /etc/fl-node/run.env 2>/dev/null || true)
name=
if [ -n "$contract" ]; then
	name=$(grep -lFx "FL_NODE_CONTRACT=$contract" /etc/fl-node/runs/* 2>/dev/null | head -n 1 || true)
fi
cursor=$(journalctl --quiet --lines=0 --show-cursor | sed -n 's/^-- cursor: //p')
mnist=$(find /opt/fl-node/mnist -maxdepth 1 -name '*-ubyte*' 2>/dev/null | wc -l)
printf '{"account": "%s", "accounts": [%s], "running": %s, "contract": "%s", "name": "%s", "cursor": "%s", "mnist": %d}\n' \
	"$(tr -d '[:space:]' </var/lib/fl-node/account)" "$accounts" "$running" "$contract" "${name##*/}" "$cursor" "$mnist"
