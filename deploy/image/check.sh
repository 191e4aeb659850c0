#!/usr/bin/env bash
# Builds every target of the Dockerfile and runs it, on a machine without a container engine: `make image-check`.
#
# buildah builds and crun runs, as root, in a network namespace with only a loopback interface. BASE is the base image to
# pull; without it, mmdebstrap makes one: a minimal Debian 13, which has Python 3.13. Everything is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=.venv/bin/python
locks=(worker lambda otel local ministack)

for tool in buildah crun ip mmdebstrap; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing: apt-get install --no-install-recommends buildah crun iproute2 mmdebstrap" >&2
        exit 1
    fi
done
if [ "$(id -u)" != 0 ]; then
    echo "this needs root: it creates file systems and namespaces" >&2
    exit 1
fi

work=$(mktemp -d)
build() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }
clean() {
    build umount --all >/dev/null 2>&1 || true
    build rm --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT

echo "== wheels for both architectures"
for lock in "${locks[@]}"; do
    for machine in x86_64 aarch64; do
        "$python" -m pip --disable-pip-version-check -qq install --dry-run --target "$work/none" \
            --python-version 3.13 --implementation cp --platform "manylinux_2_28_$machine" \
            --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine" \
            --only-binary :all: --require-hashes --requirement "requirements/$lock.txt"
    done
    echo "requirements/$lock.txt: x86_64 and aarch64"
done

base=${BASE:-}
if [ -z "$base" ]; then
    echo "== a base image"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3-venv trixie "$work/base.tar"
    container=$(build from scratch)
    build add --quiet "$container" "$work/base.tar" / >/dev/null
    build commit --quiet --rm "$container" gatecast-base >/dev/null
    rm "$work/base.tar"
    base=localhost/gatecast-base
fi

# The machine's configuration of its package index is mounted during the build, and is not part of any image.
echo "[global]" >"$work/pip.conf"
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
for name in index-url cert trusted-host; do
    variable=PIP_$(tr a-z- A-Z_ <<<"$name")
    value=${!variable:-$("$python" -m pip config get "global.$name" 2>/dev/null || true)}
    [ -z "$value" ] || echo "$name = $value" >>"$work/pip.conf"
    [ "$name" != cert ] || [ -z "$value" ] || mounts+=(--volume "$value:$value:ro")
done

image() { # NAME TARGET [OPTION…]: builds an image and unpacks it for the tests
    local name=$1 target=$2 root
    shift 2
    echo "== $name"
    build build --isolation chroot --layers --quiet --format docker "${mounts[@]}" \
        --build-arg BASE="$base" --target "$target" --tag "gatecast-$name" "$@" . >/dev/null
    mkdir -p "$work/images/$name"
    build inspect --type image "gatecast-$name" >"$work/images/$name/image.json"
    root=$(build mount "$(build from "gatecast-$name")")
    ln -s "$root" "$work/images/$name/rootfs"
    du -sh "$root" | cut -f1
    du -sh "$root/opt/gatecast" "$root/app" | sed "s|$root||"
}
image worker worker
image worker-otel worker --build-arg EXTRA=otel
image routes routes
image local local
image ministack ministack

echo "== running them"
# crun does not start anything if cgroups v1 and v2 are mixed, although it needs neither here.
GATECAST_IMAGES="$work/images" timeout 900 unshare --net --mount -- sh -c \
    'ip link set lo up && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' \
    sh "$python" -m pytest tests/integration/test_image.py --timeout 300
