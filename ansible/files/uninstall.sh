#!/bin/bash
# Removes everything that the roles brought to this host, and says what it removed. A second time it does nothing.
# /etc/fl-testbed goes last, because it marks a host of the testbed: where it is missing, a unit or a user named geth is
# somebody else's. Dependencies of packages stay (apt-get autoremove removes them), and so does the journal.
set -euo pipefail
shopt -s nullglob
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
mark=/etc/fl-testbed
ours="# By the testbed's role base, from base_apt_mirror."
several=($(systemctl list-units --all --plain --no-legend 'fl-learner@*' 'fl-standby@*' | cut -d ' ' -f 1))
for wanted in /etc/systemd/system/multi-user.target.wants/fl-learner@*; do # each of several learners has one
	several+=("${wanted##*/}")
done
units=(fl-sweep.service fl-sweep-worker.service fl-sweep-scheduler.service fl-dashboard.service "${several[@]}"
	fl-trainer.service fl-standby.service fl-learner.service fl-header.service geth.service ipfs.service
	fl-firewall-watch.service fl-firewall-check.socket fl-firewall.service)
paths=("${units[@]/#//etc/systemd/system/}"
	/etc/systemd/system/fl-{firewall-check,learner,standby}@.service
	/etc/systemd/system/nftables.service.d/fl-testbed.conf
	/etc/tmpfiles.d/fl-testbed-{base,fl-node,geth,ipfs}.conf
	/etc/apt/apt.conf.d/80fl-testbed-proxy
	/usr/local/bin/{fl-node,geth,ipfs}
	/usr/local/lib/fl-testbed
	/opt/fl-node
	/etc/fl-node /etc/geth
	/var/lib/fl-node /var/lib/geth /var/lib/ipfs
	/var/lib/fl-sweep /var/cache/fl-sweep /run/fl-sweep
	/var/cache/fl-testbed
	/run/fl-testbed)

[ -d "$mark" ] || exit 0

for unit in "${units[@]}"; do
	systemctl disable --quiet --now "$unit" 2>/dev/null || true
done
nft delete table inet fl_testbed 2>/dev/null || true # if its unit did not
for path in "${paths[@]}"; do
	if [ -e "$path" ] || [ -L "$path" ]; then
		rm -rf "$path"
		echo "removed $path"
	fi
done
rmdir /etc/systemd/system/nftables.service.d 2>/dev/null || true # unless it has other files
systemctl daemon-reload
systemctl reset-failed "${units[@]}" 2>/dev/null || true

# A user with another home or a shell was there before.
for home in geth:/var/lib/geth ipfs:/var/lib/ipfs fl-node:/var/lib/fl-node fl-dashboard:/nonexistent fl-sweep:/nonexistent; do
	user=${home%%:*}
	case $(getent passwd "$user") in
	*":${home#*:}:/usr/sbin/nologin")
		userdel "$user"
		echo "removed user $user"
		;;
	esac
done

# Package sources: each change kept a copy, sources.list.PID.DATE@TIME~, and one is the system's own.
sources=/etc/apt/sources.list
if [ "$(head -n 1 "$sources" 2>/dev/null)" = "$ours" ]; then
	original=
	for copy in "$sources".*@*~; do
		[ "$(head -n 1 "$copy")" = "$ours" ] || original=$copy
	done
	if [ -n "$original" ]; then mv "$original" "$sources"; else rm "$sources"; fi
	rm -f "$sources".*@*~
	echo "restored $sources"
	for disabled in /etc/apt/sources.list.d/{debian,ubuntu}.sources.disabled; do
		mv --no-clobber "$disabled" "${disabled%.disabled}"
		echo "restored ${disabled%.disabled}"
	done
fi
if [ -e /usr/local/share/ca-certificates/fl-testbed.crt ]; then
	rm /usr/local/share/ca-certificates/fl-testbed.crt
	update-ca-certificates >/dev/null
	echo "removed the site's certificates"
fi

# Packages that the host lacked before. It trusts certificates by ca-certificates, and an enabled nftables.service has
# somebody else's rules.
while read -r package; do
	[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || continue
	[ "$package" != ca-certificates ] || continue
	if [ "$package" = nftables ] && systemctl is-enabled --quiet nftables.service; then continue; fi
	# Only if nothing else goes with it.
	[ "$(apt-get --simulate remove "$package" | grep -c '^Remv ')" = 1 ] || continue
	apt-get -o DPkg::Lock::Timeout=600 -qq purge --yes "$package" >/dev/null
	echo "removed package $package"
done < <(cat "$mark/packages" 2>/dev/null)

rm -rf "$mark"
echo "removed $mark"
