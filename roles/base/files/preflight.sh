#!/bin/bash
# Says, as JSON, what this host is; changes nothing.
# Arguments: the controller's time; address and port of SSH of each other host.
now=$(date +%s)
set -eu
asked=$1
shift
. /etc/os-release
unreachable=()
while [ $# -ge 2 ]; do
	timeout 5 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null || unreachable+=("\"$1 on port $2\"")
	shift 2
done
# As configured: with socket activation systemd listens, on the same ports.
ssh_ports=$(mkdir -p /run/sshd && sshd -T 2>/dev/null | awk '$1 == "port" { printf "%s%s", comma, $2; comma = ", " }' || true)
free_mb() { df --output=avail -m "$1" | tail -1 | tr -d ' '; }
room=$(free_mb /var)
other=$(free_mb /opt)
# Both close what the testbed opens. Ubuntu's unit of ufw is active on hosts where ufw itself is not.
others=
if LC_ALL=C ufw status 2>/dev/null | grep -qx 'Status: active'; then others='"ufw"'; fi
if systemctl is-active --quiet firewalld.service; then others="${others:+$others, }\"firewalld\""; fi
python=
for version in 3.13 3.12 3.11; do
	# Debian's may lack what makes environments; uv needs the program alone.
	if command -v "python$version" >/dev/null; then
		python=$version
		break
	fi
done
# The units that this project's roles have written, now or in an earlier version.
units=
for unit in "${UNITS:-/etc/systemd/system}"/fl-*.service; do
	unit=${unit##*/}
	if [[ $unit =~ ^fl-[a-z-]+@?[.]service$ ]]; then units="${units:+$units, }\"$unit\""; fi
done
# TensorFlow's wheels need it; some hypervisors hide it from their machines.
avx=true
if [ "$(uname -m)" = x86_64 ] && ! grep -qsw avx "${CPUINFO:-/proc/cpuinfo}"; then avx=false; fi
list=$(
	IFS=,
	echo "${unreachable[*]-}"
)
cat <<JSON
{"id": "$ID", "version": "${VERSION_ID:-0}", "codename": "${VERSION_CODENAME-}", "machine": "$(uname -m)", "init": "$(cat /proc/1/comm)",
 "avx": $avx, "memory_mb": $(awk '/^MemTotal/ {print int($2 / 1000)}' /proc/meminfo), "disk_mb": $((other < room ? other : room)),
 "provisioned": $([ -e /etc/fl-testbed/firewall.nft ] && echo true || echo false), "unreachable": [$list],
 "ssh_ports": [$ssh_ports], "complete": $([ -e /etc/systemd/system/geth.service ] && [ -e /var/lib/geth/geth/chaindata ] && echo true || echo false),
 "login": "${SUDO_UID:-0}", "firewalls": [$others], "units": [$units],
 "container": $(systemd-detect-virt --container --quiet && echo true || echo false),
 "python": "$python", "asked": $asked, "epoch": $now}
JSON
