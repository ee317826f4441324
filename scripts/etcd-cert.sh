#!/usr/bin/env bash
# Makes etcd's certificate authority and the certificate that its members use as servers, as peers and as clients.
#
#   etcd-cert.sh [ADDRESS...]    default: the addresses in certs/etcd/server-csr.json
#
# Writes into the current folder: ca.pem, ca-key.pem, server.pem, server-key.pem, and what they were made from. An
# authority that is there is kept; the certificate is made anew only where its addresses have changed.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 0 99 "$@"
need_cfssl
umask 077
for address in "$@"; do need_ipv4 "$address"; done
authority etcd
request=$(project_file certs/etcd/server-csr.json)
if [ $# -gt 0 ]; then request=$(with_hosts 127.0.0.1 "$@" <<< "$request"); fi
certificate server www <<< "$request"
