#!/usr/bin/env bash
# Sets up and starts this machine's scheduler.
#
#   scheduler.sh [ADDRESS]     the API server's address, 127.0.0.1 if not given
#
# Needs /opt/kubernetes/bin/kube-scheduler and the authority in /opt/kubernetes/ssl; writes below /opt/kubernetes/cfg
# kube-scheduler and kube-scheduler.kubeconfig, and the unit kube-scheduler.service.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 0 1 "$@"
need_root
address=${1:-127.0.0.1}
need_ipv4 "$address"
need_component kube-scheduler
make_kube_home
client_kubeconfig "$kube_home/cfg/kube-scheduler.kubeconfig" "https://$address:$api_port" kube-scheduler kube-scheduler

write_file "$kube_home/cfg/kube-scheduler" 644 << C
KUBE_SCHEDULER_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--leader-elect=true \\
--kubeconfig=$kube_home/cfg/kube-scheduler.kubeconfig \\
--bind-address=127.0.0.1"
C
write_file "$units/kube-scheduler.service" 644 << U
[Unit]
Description=Kubernetes Scheduler
Documentation=https://kubernetes.io/docs/
After=network-online.target kube-apiserver.service
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$kube_home/cfg/kube-scheduler
ExecStart=$kube_home/bin/kube-scheduler \$KUBE_SCHEDULER_OPTS
# Losing the lease ends it: it has to come back, and be the one that waits.
Restart=always
RestartSec=2
LimitNOFILE=65536
$(server_sandbox)

[Install]
WantedBy=multi-user.target
U
start_service kube-scheduler
