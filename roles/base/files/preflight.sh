#!/bin/bash
# Says, as JSON, what this host is; changes nothing.
# Arguments: the controller's time, port of SSH, addresses of the other hosts.
now=$(date +%s)
set -eu
asked=$1 port=$2
shift 2
. /etc/os-release
unreachable=()
for peer in "$@"; do
	timeout 5 bash -c "exec 3<>/dev/tcp/$peer/$port" 2>/dev/null || unreachable+=("\"$peer\"")
done
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
 "complete": $([ -e /etc/systemd/system/geth.service ] && [ -e /var/lib/geth/geth/chaindata ] && echo true || echo false),
 "login": "${SUDO_UID:-0}", "firewalls": [$others],
 "container": $(systemd-detect-virt --container --quiet && echo true || echo false),
 "python": "$python", "asked": $asked, "epoch": $now}
JSON
