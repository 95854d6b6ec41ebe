#!/bin/bash
# Makes the environment of the package from the wheels that were copied, if it is not of these wheels; then installs the
# package in it, if it is not this one. Says what it did; says nothing if all was there.
# Arguments: name of the archive of wheels, which Python (its name, or "own"), the package's wheel.
set -euo pipefail
umask 022 # the host's own may be stricter, and others than root run this
archive=$1 python=$2 package=$3
root=/opt/fl-node
uv=$root/uv
export UV_NO_CACHE=1 UV_OFFLINE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy

if [ "$(cat $root/venv/wheels 2>/dev/null)" != "$archive" ]; then
	folder=$(mktemp -d $root/new.XXXXXX)
	trap 'rm -rf "$folder"' EXIT
	tar -xf /var/cache/fl-testbed/wheels.tar -C "$folder"
	/usr/bin/python3 -m zipfile -e "$folder"/uv-*.whl "$folder/uv"
	install -m 0755 "$folder"/uv/uv-*.data/scripts/uv $uv
	if [ "$python" = own ]; then
		rm -rf $root/python
		mkdir $root/python
		tar -xf /var/cache/fl-testbed/python.tar -C $root/python
		python=$root/python/bin/python3
	fi
	rm -rf $root/venv
	$uv venv --quiet --python "$python" $root/venv
	$uv pip install --quiet --python $root/venv/bin/python --no-index --find-links "$folder" --no-deps --require-hashes \
		--requirements "$folder/requirements.txt"
	echo "$archive" >$root/venv/wheels
	rm -f /var/cache/fl-testbed/wheels.tar /var/cache/fl-testbed/python.tar
	echo "installed $archive"
fi

sum=$(sha256sum "$package" | cut -d' ' -f1)
if [ "$(cat $root/venv/package 2>/dev/null)" != "$sum" ]; then
	$uv pip install --quiet --python $root/venv/bin/python --no-index --no-deps --reinstall "$package"
	# Once as root, so that what is compiled can be kept; and a processor that TensorFlow can't run on shows now.
	# The package loads TensorFlow late: it has to be named here.
	(cd / && TF_CPP_MIN_LOG_LEVEL=2 $root/venv/bin/python -c "import keras, tensorflow
import fl_node.cli, fl_node.dashboard, fl_node.deploy, fl_node.header, fl_node.model")
	echo "$sum" >$root/venv/package
	echo "installed ${package##*/}"
fi
