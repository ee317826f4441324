#!/usr/bin/env bash
# Makes the cluster's certificate authority and the certificates of API server, administrator and kube-proxy.
#
#   k8s-cert.sh [ADDRESS...]    addresses and names of the API servers and of what stands in front of them; default:
#                               those in certs/kubernetes/apiserver-csr.json
#
# Writes into the current folder: ca, apiserver, admin and kube-proxy, each as NAME.pem and NAME-key.pem. An authority
# that is there is kept; a certificate is made anew only where its request has changed or it ends within a month.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 0 99 "$@"
need_cfssl
umask 077
for address in "$@"; do
  # What has four numbers has to be an address; anything else is a name.
  case $address in *[!0-9.]*) ;; *) need_ipv4 "$address" ;; esac
done
authority kubernetes
request=$(project_file certs/kubernetes/apiserver-csr.json)
if [ $# -gt 0 ]; then
  request=$(with_hosts "${service_cidr%.*}.1" 127.0.0.1 "$@" kubernetes kubernetes.default kubernetes.default.svc \
    kubernetes.default.svc.cluster kubernetes.default.svc.cluster.local <<< "$request")
fi
certificate apiserver kubernetes <<< "$request"
for name in admin kube-proxy; do
  request=$(project_file "certs/kubernetes/$name-csr.json")
  certificate "$name" kubernetes <<< "$request"
done
