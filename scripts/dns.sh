#!/usr/bin/env bash
# Sets up and starts the cluster's name server on this machine, and the service kube-dns in front of it.
#
#   dns.sh ADDRESS [OTHER...]     OTHER are further machines on which this is run
#
# Needs /opt/kubernetes/bin/{cluster-dns,kubectl}, the authority in /opt/kubernetes/ssl and ~/.kube/config (admin.sh);
# writes below /opt/kubernetes/cfg cluster-dns and cluster-dns.kubeconfig, and the unit cluster-dns.service.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 1 9 "$@"
need_root
address=$1
need_own_address "$address"
for other in "$@"; do need_ipv4 "$other"; done
need_component cluster-dns
need_component kubectl
need_file "$HOME/.kube/config" 'run admin.sh first'
make_kube_home
client_kubeconfig "$kube_home/cfg/cluster-dns.kubeconfig" "https://127.0.0.1:$api_port" cluster-dns kube-dns

write_file "$kube_home/cfg/cluster-dns" 644 << C
CLUSTER_DNS_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--kubeconfig=$kube_home/cfg/cluster-dns.kubeconfig \\
--bind-address=$address \\
--cluster-domain=cluster.local"
C
write_file "$units/cluster-dns.service" 644 << U
[Unit]
Description=Name server of the Kubernetes cluster
After=network-online.target kube-apiserver.service
Wants=network-online.target

[Service]
EnvironmentFile=$kube_home/cfg/cluster-dns
ExecStart=$kube_home/bin/cluster-dns \$CLUSTER_DNS_OPTS
Restart=on-failure
RestartSec=2
LimitNOFILE=65536
$(server_sandbox)

[Install]
WantedBy=multi-user.target
U
start_service cluster-dns
for other in "$@"; do endpoints+="  - ip: $other"$'\n'; done
project_file config/manifests/cluster-dns.yaml |
  ENDPOINTS=${endpoints%$'\n'} CLUSTER_DNS=$service_dns DNS_PORT=53 awk '
    /- ip: \$NODE_IP/ { print ENVIRON["ENDPOINTS"]; next }
    { gsub(/\$CLUSTER_DNS/, ENVIRON["CLUSTER_DNS"]); gsub(/\$DNS_PORT/, ENVIRON["DNS_PORT"]); print }' |
  "$kube_home/bin/kubectl" apply -f - || die 'the service kube-dns could not be made (see above)'
