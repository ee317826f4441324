#!/usr/bin/env bash
# Makes the kubeconfigs that nodes begin with: bootstrap.kubeconfig and kube-proxy.kubeconfig, in the current folder.
#
#   kubeconfig.sh ADDRESS CERT_DIR     kubeconfig.sh 20.0.0.100 /opt/k8s/k8s-cert/
#
# ADDRESS is where nodes find the API server: a master's, or that of a load balancer; another port than 6443 is written
# ADDRESS:PORT. An address that the API server's certificate is not for cannot be used by any node: then this master's own
# is taken, with a warning. CERT_DIR is where k8s-cert.sh was run.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 2 2 "$@"
need_root
host=${1%:*} port=$api_port dir=${2%/}
case $1 in *:*) port=${1##*:} ;; esac
need_ipv4 "$host"
[[ $port =~ ^[0-9]{1,5}$ ]] || die "'$port' is not a port"
[ -d "$dir" ] || die "there is no folder $dir"
for file in ca apiserver kube-proxy kube-proxy-key; do
  need_file "$dir/$file.pem" "run k8s-cert.sh in $dir"
done
need_file "$kube_home/cfg/token.csv" 'run token.sh first'
need_cfssl
if ! certificate_is_for "$dir/apiserver.pem" "$host"; then
  own=$(sed -n 's/^--advertise-address=\([0-9.]*\).*/\1/p' "$kube_home/cfg/kube-apiserver" 2> /dev/null || true)
  [ -n "$own" ] || die "$dir/apiserver.pem is not for $host: run k8s-cert.sh with the addresses of all masters"
  warn "the API server's certificate is not for $host; nodes will use this master, $own"
  host=$own
fi
# A line can hold more than one kind of token; the one for kubelets is known by its user.
token=$(sed -n 's/^\([^,]*\),kubelet-bootstrap,.*/\1/p' "$kube_home/cfg/token.csv" | head -n 1)
[ -n "$token" ] || die "$kube_home/cfg/token.csv has no line of the user kubelet-bootstrap"
kubeconfig "$dir/ca.pem" "https://$host:$port" kubelet-bootstrap --token "$token" | write_file bootstrap.kubeconfig 600
kubeconfig "$dir/ca.pem" "https://$host:$port" kube-proxy "$dir/kube-proxy.pem" "$dir/kube-proxy-key.pem" |
  write_file kube-proxy.kubeconfig 600
