#!/usr/bin/env bash
# Puts prometheus, promtool and amtool into .local/tools, out of Debian's packages: nothing is installed on the machine.
# Does nothing where they are there already, or on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=.local/tools
missing=()
for name in prometheus promtool amtool; do
	[[ -x $tools/$name ]] || command -v "$name" >/dev/null || missing+=("$name")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "There is no apt-get here: tests that need ${missing[*]} are skipped until you put them on the PATH." >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
download() { (cd "$work" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download prometheus prometheus-alertmanager); }
if ! download 2>/dev/null; then # a machine that has never asked knows of no package
	[[ $EUID -ne 0 ]] || apt-get -qq update
	download
fi
for package in "$work"/*.deb; do
	dpkg-deb -x "$package" "$work/unpacked"
done
mkdir -p "$tools"
for name in "${missing[@]}"; do
	mv "$work/unpacked/usr/bin/$name" "$tools/"
done
