#!/bin/sh
# Runs on a host as root: the given public key becomes the only way in. Boxes come with Vagrant's public key, and with
# passwords that everybody knows, such as vagrant's.
set -eu
public_key=$1
folder=/home/vagrant/.ssh
config=/etc/ssh/sshd_config
settings=/etc/ssh/sshd_config.d/00-fl-testbed.conf

if [ "$(cat "$folder/authorized_keys" 2>/dev/null)" != "$public_key" ]; then
	install -d -o vagrant -g vagrant -m 0700 "$folder"
	printf '%s\n' "$public_key" >"$folder/authorized_keys.new"
	chown vagrant:vagrant "$folder/authorized_keys.new"
	chmod 0600 "$folder/authorized_keys.new"
	mv "$folder/authorized_keys.new" "$folder/authorized_keys"
fi

# Not usermod --lock: without PAM, sshd lets nobody in whose password begins with an exclamation mark.
for user in vagrant root; do
	case $(getent shadow "$user" | cut -d: -f2) in
	'!'* | '*'*) ;;
	*) usermod --password '*' "$user" ;;
	esac
done

# OpenSSH before 8.7 has two names for one thing.
wanted='PasswordAuthentication no
KbdInteractiveAuthentication no
ChallengeResponseAuthentication no
PermitEmptyPasswords no
HostbasedAuthentication no
PermitRootLogin no
AuthorizedKeysFile .ssh/authorized_keys
AuthorizedKeysCommand none
TrustedUserCAKeys none'

# Whether all that is wanted is in force for user vagrant; a newer sshd does not print the older name.
in_force() {
	mkdir -p /run/sshd
	said=$(sshd -T -C user=vagrant,host=localhost,addr=127.0.0.1) || return 1
	for name in passwordauthentication kbdinteractiveauthentication challengeresponseauthentication permitemptypasswords \
		hostbasedauthentication permitrootlogin; do
		! printf '%s\n' "$said" | grep -q "^$name " || printf '%s\n' "$said" | grep -qx "$name no" || return 1
	done
	printf '%s\n' "$said" | grep -qx 'authorizedkeysfile .ssh/authorized_keys'
}

changed=
# sshd takes the first value that it reads, so this file comes before others, such as cloud-init's 50-cloud-init.conf.
if [ "$(cat "$settings" 2>/dev/null)" != "$wanted" ]; then
	mkdir -p "${settings%/*}"
	printf '%s\n' "$wanted" >"$settings.new"
	chmod 0644 "$settings.new"
	mv "$settings.new" "$settings"
	changed=yes
fi
if ! in_force; then
	# The box's file does not include the others, or has values of its own before it does.
	{ echo "Include $settings" && cat "$config"; } >"$config.new"
	chmod --reference="$config" "$config.new"
	mv "$config.new" "$config"
	changed=yes
fi
if ! in_force; then
	# The box has a Match section. Of those that apply the first counts.
	{ echo 'Match all' && printf '%s\n' "$wanted" | grep -v ChallengeResponse; } >>"$settings"
	changed=yes
fi
if ! in_force; then
	echo "authorize.sh: sshd still allows logins without the testbed's key; check $config and ${settings%/*}" >&2
	exit 1
fi
if [ -n "$changed" ]; then
	for unit in ssh.service sshd.service; do
		if systemctl is-active --quiet "$unit"; then
			systemctl reload "$unit"
			break
		fi
	done
fi
