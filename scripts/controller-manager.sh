#!/usr/bin/env bash
# Sets up and starts this machine's controller manager.
#
#   controller-manager.sh [ADDRESS]     the API server's address, 127.0.0.1 if not given
#
# Needs /opt/kubernetes/bin/kube-controller-manager and the authority in /opt/kubernetes/ssl; writes below
# /opt/kubernetes/cfg kube-controller-manager and kube-controller-manager.kubeconfig, and the unit
# kube-controller-manager.service.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 0 1 "$@"
need_root
address=${1:-127.0.0.1}
need_ipv4 "$address"
need_component kube-controller-manager
make_kube_home
ssl=$kube_home/ssl
client_kubeconfig "$kube_home/cfg/kube-controller-manager.kubeconfig" "https://$address:$api_port" \
  kube-controller-manager kube-controller-manager

write_file "$kube_home/cfg/kube-controller-manager" 644 << C
KUBE_CONTROLLER_MANAGER_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--leader-elect=true \\
--kubeconfig=$kube_home/cfg/kube-controller-manager.kubeconfig \\
--bind-address=127.0.0.1 \\
--allocate-node-cidrs=true \\
--cluster-cidr=$pod_cidr \\
--service-cluster-ip-range=$service_cidr \\
--cluster-signing-cert-file=$ssl/ca.pem \\
--cluster-signing-key-file=$ssl/ca-key.pem \\
--root-ca-file=$ssl/ca.pem \\
--service-account-private-key-file=$ssl/ca-key.pem \\
--use-service-account-credentials=true \\
--experimental-cluster-signing-duration=87600h0m0s"
C
write_file "$units/kube-controller-manager.service" 644 << U
[Unit]
Description=Kubernetes Controller Manager
Documentation=https://kubernetes.io/docs/
After=network-online.target kube-apiserver.service
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$kube_home/cfg/kube-controller-manager
ExecStart=$kube_home/bin/kube-controller-manager \$KUBE_CONTROLLER_MANAGER_OPTS
# Losing the lease ends it: it has to come back, and be the one that waits.
Restart=always
RestartSec=2
LimitNOFILE=65536
$(server_sandbox)

[Install]
WantedBy=multi-user.target
U
start_service kube-controller-manager
