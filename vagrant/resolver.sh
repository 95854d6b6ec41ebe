#!/bin/sh
# Runs on a virtual machine as root: lets it resolve names by the DNS servers of its network. Some boxes, such as
# generic/*, set public DNS servers and DNSSEC, which campus networks often block. Argument: another root, for tests.
set -eu
root=${1:-}
changed=

write() {
	[ "$(cat "$1" 2>/dev/null)" != "$2" ] || return 0
	mkdir -p "${1%/*}"
	printf '%s\n' "$2" >"$1"
	chmod 0644 "$1"
	changed=yes
}

# An empty assignment resets the list that the box has set.
if grep -qsE '^ *(DNS|FallbackDNS)=[^ ]|^ *DNSSEC=(yes|true|1|allow-downgrade)' "$root/etc/systemd/resolved.conf"; then
	write "$root/etc/systemd/resolved.conf.d/fl-testbed.conf" '[Resolve]
DNS=
FallbackDNS=
DNSSEC=no'
fi

# Where netplan sets DNS servers on a link that gets others by DHCP.
for file in "$root"/run/systemd/network/*.network; do
	if grep -qsE '^ *DNS=[^ ]' "$file" && grep -qsE '^ *DHCP=(yes|ipv4|true)' "$file"; then
		write "$root/etc/systemd/network/${file##*/}.d/fl-testbed.conf" '[Network]
DNS='
	fi
done

if [ -n "$changed" ] && [ -z "$root" ]; then
	networkctl reload
	systemctl restart systemd-resolved.service
fi
