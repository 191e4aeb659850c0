#!/usr/bin/env bash
# Makes virtual environments and installs locks into them, for the Makefile:
#   install.sh check                   is $PYTHON (default python3) suitable?
#   install.sh environment DIRECTORY   makes a virtual environment, without what an interrupted attempt left there;
#                                      followed by PROGRAM VERSION, which say what needs which Python at least
#   install.sh lock DIRECTORY FILE     installs a hashed requirements file into it
set -euo pipefail

python=${PYTHON:-python3}

fail() {
	printf '%s\n' "$@" >&2
	exit 1
}

check() {
	local minimum=${2:-3.11}
	local needs="${1:-Gatecast} needs Python $minimum or later"
	command -v "$python" >/dev/null ||
		fail "There is no $python here. $needs: install it, or name it, as in: make PYTHON=python3.12"
	"$python" -c "import sys; sys.exit(sys.version_info < (${minimum/./, }))" ||
		fail "$python is $("$python" --version 2>&1). $needs: name one, as in: make PYTHON=python3.12"
	"$python" -c 'import ensurepip, venv' 2>/dev/null ||
		fail "$python cannot make virtual environments, for it has no ensurepip or venv." \
			"On Debian and Ubuntu, install them and run make again: sudo apt-get install python3-venv"
}

case $1 in
check) check ;;
environment)
	check "${@:3}"
	"$python" -m venv --clear "$2" || fail "No virtual environment could be made in $2; the lines above say why. Run make again afterwards."
	;;
lock)
	# pip takes a package of which an interrupted installation left a part for an installed one
	unfinished=$2/.unfinished
	again=()
	[ ! -e "$unfinished" ] || again=(--ignore-installed)
	touch "$unfinished"
	"$2/bin/python" -m pip --disable-pip-version-check --quiet install --require-hashes ${again[@]+"${again[@]}"} -r "$3"
	rm "$unfinished"
	;;
esac
