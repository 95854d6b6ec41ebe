#!/bin/bash
# Archives chain, store, keys and runs of this host. Geth and IPFS are down meanwhile; they start again even if the
# controller is lost or this is killed, because systemd runs it. Prints the archive's SHA-256.
# Arguments: the archive; "continue", or "stay" if Geth, IPFS and the roles are to stay down.
set -euo pipefail
archive=$1 then=$2
folder=${archive%/*}

if [ "${3-}" != inside ]; then
	properties=()
	active=()
	for unit in geth.service ipfs.service; do
		if systemctl is-active --quiet "$unit"; then active+=("$unit"); fi
	done
	if [ "$then" = continue ] && [ ${#active[@]} -gt 0 ]; then
		properties=("--property=ExecStopPost=/bin/systemctl --no-block start ${active[*]}")
	fi
	systemd-run --quiet --collect --wait --pipe --unit=fl-testbed-backup "${properties[@]}" /bin/bash "$(readlink -f "$0")" \
		"$archive" "$then" inside "${SUDO_UID:-0}" "${active[@]}"
	exit
fi
login=$4
shift 4
active=("$@")

umask 077
cd /
members=()
for member in etc/geth/genesis.json etc/fl-node/run.env etc/fl-node/runs opt/fl-node/modules var/lib/geth var/lib/ipfs var/lib/fl-node; do
	[ ! -e "$member" ] || members+=("$member")
done
rm -rf "$folder"
mkdir -p "$folder"
needed=$({ du --total --summarize --block-size=1K "${members[@]}" 2>/dev/null || true; } | tail -n 1 | cut -f 1) # files may vanish
free=$(df --output=avail --block-size=1K "$folder" | tail -n 1)
if [ "$free" -le $((needed + 102400)) ]; then
	echo "the archive takes up to $((needed / 1024)) MB, and $folder has $((free / 1024)) MB free; nothing was stopped" >&2
	exit 1
fi

if [ "$then" = stay ]; then
	for unit in $(systemctl list-units --all --plain --no-legend 'fl-learner@*' 'fl-standby@*' | cut -d ' ' -f 1); do
		systemctl disable --quiet --now "$unit" # one of several learners
	done
	for unit in fl-standby fl-learner fl-header fl-dashboard geth ipfs; do
		[ ! -e "/etc/systemd/system/$unit.service" ] || systemctl disable --quiet --now "$unit.service"
	done
else
	systemctl stop geth.service ipfs.service
fi
# Roles that go on change their files meanwhile: exit code 1, with "file changed as we read it". A host's secret stays on it: runs
# that are lost with the host must not share their masks and their noise with later ones at the same contract's address.
code=0
tar --create --sparse --file "$archive.part" --exclude=geth.ipc --exclude=LOCK --exclude=var/lib/ipfs/repo.lock --exclude=host.secret \
	--exclude=var/lib/ipfs/api --exclude=var/lib/fl-node/.cache "${members[@]}" || code=$?
if [ "$code" -gt 1 ]; then
	rm -f "$archive.part"
	exit "$code"
fi
if [ "$then" = continue ] && [ ${#active[@]} -gt 0 ]; then systemctl start "${active[@]}"; fi
# The user by whom Ansible logs in fetches it.
chown "$login" "$folder" "$archive.part"
mv "$archive.part" "$archive"
sha256sum "$archive" | cut -c1-64
