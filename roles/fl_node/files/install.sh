#!/bin/bash
# Makes the environment of the package beside the one in use, and takes its place with it when it is whole. So a role that
# runs keeps what it was started from, and what was interrupted changes nothing. Says what it did; nothing if all was there.
# Arguments: name of the archive of wheels, which Python (its name, or "own"), the package's wheel.
#   /opt/fl-node/wheels-…   the wheels, and Python if it is our own
#   /opt/fl-node/package-…  these wheels, as hard links, and the package
#   /opt/fl-node/venv       a link to the package in use
set -euo pipefail
umask 022 # the host's own may be stricter, and others than root run this
archive=$1 python=$2 package=$3
root=${FL_NODE_ROOT:-/opt/fl-node}
downloads=${FL_NODE_DOWNLOADS:-/var/cache/fl-testbed}
uv=$root/uv
# uv unpacks wheels into its cache. From a cache on the same file system it links them, and nothing is written twice.
export UV_CACHE_DIR=$root/cache UV_LINK_MODE=hardlink UV_OFFLINE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never

sum=$(sha256sum "$package" | cut -d' ' -f1)
[ "$(cat "$root/venv/wheels" 2>/dev/null)" != "$archive" ] || [ "$(cat "$root/venv/package" 2>/dev/null)" != "$sum" ] || exit 0

folder=
trap 'rm -rf "$folder" "$UV_CACHE_DIR" "$root/venv.new"' EXIT
wheels=$root/wheels-${archive%.tar}
if [ ! -e "$wheels/whole" ]; then
	rm -rf "$wheels"
	folder=$(mktemp -d "$root/new.XXXXXX")
	tar -xf "$downloads/wheels.tar" -C "$folder"
	/usr/bin/python3 -I -m zipfile -e "$folder"/uv-*.whl "$folder/uv"
	install -m 0755 "$folder"/uv/uv-*.data/scripts/uv "$uv"
	mkdir "$wheels"
	if [ "$python" = own ]; then
		mkdir "$wheels/python"
		tar -xf "$downloads/python.tar" -C "$wheels/python"
		python=$wheels/python/bin/python3
	fi
	"$uv" venv --quiet --python "$python" "$wheels/venv"
	"$uv" pip install --quiet --python "$wheels/venv/bin/python" --no-index --find-links "$folder" --no-deps --require-hashes \
		--requirements "$folder/requirements.txt"
	touch "$wheels/whole"
	echo "installed $archive"
fi

made=$root/package-${sum:0:16}-$(basename "$wheels")
if [ ! -e "$made/package" ]; then
	rm -rf "$made"
	# The same files by other names, so that it takes neither time nor room.
	cp -al "$wheels/venv" "$made"
	"$uv" pip install --quiet --python "$made/bin/python" --no-index --no-deps "$package"
	# Once as root, so that what is compiled can be kept; and a processor that TensorFlow can't run on shows now.
	# The package loads TensorFlow late, so it is named here. The command line comes first, because it may restart Python.
	(cd / && TF_CPP_MIN_LOG_LEVEL=2 "$made/bin/python" -c "${FL_NODE_TRY:-import fl_node.cli.app
import keras, tensorflow
import fl_node.monitor.server, fl_node.roles.deploy, fl_node.roles.factory, fl_node.models.keras_trainer}")
	echo "$archive" >"$made/wheels"
	echo "$sum" >"$made/package"
	echo "installed ${package##*/}"
fi

ln -sfn "$(basename "$made")" "$root/venv.new"
if [ -d "$root/venv" ] && [ ! -L "$root/venv" ]; then
	mv -T "$root/venv" "$root/venv.old" # of an earlier version, which had no link
fi
mv -T "$root/venv.new" "$root/venv"
rm -f "$downloads/wheels.tar" "$downloads/python.tar"

# What no process uses any more.
used=$(cat /proc/[0-9]*/cmdline /proc/[0-9]*/maps 2>/dev/null | tr '\0' '\n' || true)
for old in "$root"/package-* "$root"/wheels-* "$root"/venv.old "$root"/python; do
	case $old in "$made" | "$wheels") continue ;; esac
	[ -d "$old" ] || continue
	grep -qF "$old/" <<<"$used" || rm -rf "$old"
done
