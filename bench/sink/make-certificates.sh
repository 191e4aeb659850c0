#!/bin/sh
# A throw-away CA and a server certificate for 127.0.0.1 and localhost: ca.pem, server.pem, server-key.pem.
#
#   ./make-certificates.sh [DIRECTORY] [rsa|ec]
#
# RSA 2048 by default, which is what API Gateway's endpoints present: the client's share of a handshake is then the real
# one. The extensions are those that strict verification (Python 3.13's default) asks for.
set -eu

directory=${1:-build/certificates}
case ${2:-rsa} in
rsa) key_options="-algorithm RSA -pkeyopt rsa_keygen_bits:2048" ;;
ec) key_options="-algorithm EC -pkeyopt ec_paramgen_curve:P-256" ;;
*)
    echo "usage: $0 [DIRECTORY] [rsa|ec]" >&2
    exit 2
    ;;
esac

umask 077
mkdir -p "$directory"
cd "$directory"

# shellcheck disable=SC2086 # the options are several words
openssl genpkey $key_options -out ca-key.pem 2>/dev/null
# shellcheck disable=SC2086
openssl genpkey $key_options -out server-key.pem 2>/dev/null

openssl req -x509 -new -key ca-key.pem -days 365 -subj "/CN=Gatecast benchmark CA" -out ca.pem \
    -addext "keyUsage=critical,keyCertSign,cRLSign"
cat >extensions.cnf <<EXTENSIONS
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
EXTENSIONS
openssl req -new -key server-key.pem -subj "/CN=localhost" |
    openssl x509 -req -CA ca.pem -CAkey ca-key.pem -days 365 -extfile extensions.cnf -out server.pem 2>/dev/null

rm ca-key.pem extensions.cnf # nothing else is ever signed with this CA
rm -f ca.srl
