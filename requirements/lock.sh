#!/usr/bin/env bash
# Resolves the locks, for the Makefile: each NAME.in here becomes NAME.txt, hashed. It needs uv on the PATH.
# A package has the version that the linters and tests have, unless its lock says otherwise. Where aioboto3 is not
# needed, AWS's SDK is the current one: aioboto3 pins an old version (docs/adr/0024-leaving-aioboto3.md).
set -euo pipefail
cd "$(dirname "$0")"

compile() {
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--no-header "$1.in" -o "$1.txt" "${@:2}"
}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

for name in tools ministack localstack checks; do
	compile "$name"
done
for name in worker local otel test bench; do
	compile "$name" -c tools.txt
done

sed -nE '/^(aioboto|boto|s3transfer)/!s/^([^ ].*) \\$/\1/p' tools.txt >"$temporary/without-sdk.txt"
echo "aioboto3; python_version < '3'" >"$temporary/without-aioboto3.txt"
current=(-c "$temporary/without-sdk.txt" -P aiobotocore -P boto3 -P botocore -P s3transfer)
compile routes "${current[@]}"
compile lambda -c routes.txt
compile aiobotocore "${current[@]}" --override "$temporary/without-aioboto3.txt"
