#!/usr/bin/env bash
# Unpacks AWS's DynamoDB Local from the npm package that contains it into .local/tools/dynamodb-local, without installing
# the package. Java and npm must be on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=amplify-dynamodb-simulator@2.9.30 # DynamoDB Local 1.25.1
sha256=3503ffac19f183407909fecdacf4db51ab1fdad1da7b2f177016670b2d80e4b9
tools=.local/tools

need() {
	command -v "$1" >/dev/null && return
	echo "$1 is missing, which DynamoDB Local needs. On Debian and Ubuntu: sudo apt-get install $2" >&2
	exit 1
}
need java default-jre-headless
[[ ! -e $tools/dynamodb-local/$sha256 ]] || exit 0
need npm npm

mkdir -p "$tools"
work=$(mktemp -d "$tools/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
archive=$work/$(npm pack --silent --pack-destination "$work" "$package")
echo "$sha256  $archive" | sha256sum --quiet --check || {
	echo "$package is not the file whose hash is in tests/fetch_dynamodb_local.sh" >&2
	exit 1
}
tar -xzf "$archive" -C "$work" package/emulator
touch "$work/package/emulator/$sha256" # what is unpacked, and that it is complete
rm -rf "$tools/dynamodb-local"
mv "$work/package/emulator" "$tools/dynamodb-local"
