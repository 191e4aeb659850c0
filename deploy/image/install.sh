#!/bin/sh
# Used in the image build: `install.sh "LOCK…" [SERVICE…]` installs the locked packages, by hash and from wheels only,
# into the virtual environment /opt/gatecast, which has no pip of its own. Of the AWS SDK's service models, half of the
# total size, only those of the named services are kept.
set -eu

requirements=
for lock in $1; do
    requirements="$requirements --requirement $lock.txt"
done
shift
# shellcheck disable=SC2086 # splits into words
pip/bin/pip --python /opt/gatecast/bin/python3 install --disable-pip-version-check --no-cache-dir --no-compile \
    --require-hashes --only-binary :all: $requirements

if [ $# -gt 0 ]; then
    for model in /opt/gatecast/lib/python3*/site-packages/botocore/data/*/; do
        case " $* " in
            *" $(basename "$model") "*) ;;
            *) rm -r "$model" ;;
        esac
    done
fi

python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/gatecast/lib
chmod -R go=u-w /opt/gatecast
