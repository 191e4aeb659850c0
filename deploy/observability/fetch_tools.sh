#!/usr/bin/env bash
# Extracts prometheus, promtool and amtool from Debian's packages into .local/tools, without installing the packages.
# Does nothing for tools that exist there or on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=.local/tools
missing=()
for name in prometheus promtool amtool; do
	[[ -x $tools/$name ]] || command -v "$name" >/dev/null || missing+=("$name")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "apt-get is missing: tests that need ${missing[*]} are skipped until you put these on the PATH." >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
download() { (cd "$work" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download prometheus prometheus-alertmanager); }
if ! download 2>/dev/null; then # the package lists may never have been fetched
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
