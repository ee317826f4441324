#!/usr/bin/env bash
# Sets up and starts this machine's API server.
#
#   apiserver.sh ADDRESS ETCD_SERVERS     apiserver.sh 20.0.0.100 https://20.0.0.100:2379,https://20.0.0.103:2379
#
# Needs /opt/kubernetes/bin/kube-apiserver, /opt/kubernetes/ssl/{ca,apiserver}{,-key}.pem (k8s-cert.sh),
# /opt/kubernetes/cfg/token.csv (token.sh) and /opt/etcd/ssl/{ca,server,server-key}.pem (etcd-cert.sh); writes
# /opt/kubernetes/cfg/kube-apiserver and the unit kube-apiserver.service.
# EMULATED_VERSION in the environment is the release that it behaves as (1.20).
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 2 2 "$@"
need_root
address=$1 etcd_servers=$2
need_own_address "$address"
IFS=, read -ra servers <<< "$etcd_servers"
for server in "${servers[@]}"; do
  [[ $server =~ ^https?://[A-Za-z0-9.-]+:[0-9]+$ ]] || die "'$server' is not https://ADDRESS:PORT"
done
need_component kube-apiserver
ssl=$kube_home/ssl
for file in ca ca-key apiserver apiserver-key; do
  need_file "$ssl/$file.pem" 'copy it from the folder in which k8s-cert.sh was run'
done
for file in ca server server-key; do
  need_file "$etcd_home/ssl/$file.pem" 'copy it from the folder in which etcd-cert.sh was run'
done
need_file "$kube_home/cfg/token.csv" 'run token.sh first'
if command -v cfssl > /dev/null && ! certificate_is_for "$ssl/apiserver.pem" "$address"; then
  die "$ssl/apiserver.pem is not for $address: run k8s-cert.sh with the addresses of all masters"
fi
make_kube_home
chmod 600 "$ssl"/*-key.pem "$kube_home/cfg/token.csv" "$etcd_home"/ssl/*-key.pem

write_file "$kube_home/cfg/kube-apiserver" 644 << C
KUBE_APISERVER_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--etcd-servers=$etcd_servers \\
--bind-address=0.0.0.0 \\
--secure-port=$api_port \\
--advertise-address=$address \\
--allow-privileged=true \\
--service-cluster-ip-range=$service_cidr \\
--enable-admission-plugins=NamespaceLifecycle,LimitRanger,ServiceAccount,ResourceQuota,NodeRestriction \\
--authorization-mode=RBAC,Node \\
--enable-bootstrap-token-auth=true \\
--token-auth-file=$kube_home/cfg/token.csv \\
--service-node-port-range=30000-50000 \\
--kubelet-client-certificate=$ssl/apiserver.pem \\
--kubelet-client-key=$ssl/apiserver-key.pem \\
--tls-cert-file=$ssl/apiserver.pem \\
--tls-private-key-file=$ssl/apiserver-key.pem \\
--client-ca-file=$ssl/ca.pem \\
--service-account-key-file=$ssl/ca-key.pem \\
--service-account-signing-key-file=$ssl/ca-key.pem \\
--service-account-issuer=https://kubernetes.default.svc.cluster.local \\
--etcd-cafile=$etcd_home/ssl/ca.pem \\
--etcd-certfile=$etcd_home/ssl/server.pem \\
--etcd-keyfile=$etcd_home/ssl/server-key.pem \\
--requestheader-client-ca-file=$ssl/ca.pem \\
--proxy-client-cert-file=$ssl/apiserver.pem \\
--proxy-client-key-file=$ssl/apiserver-key.pem \\
--requestheader-allowed-names=kubernetes \\
--requestheader-extra-headers-prefix=X-Remote-Extra- \\
--requestheader-group-headers=X-Remote-Group \\
--requestheader-username-headers=X-Remote-User \\
--enable-aggregator-routing=true \\
--audit-log-maxage=30 \\
--audit-log-maxbackup=3 \\
--audit-log-maxsize=100 \\
--audit-log-path=$kube_home/logs/k8s-audit.log \\
--emulated-version=${EMULATED_VERSION:-1.20}"
C
write_file "$units/kube-apiserver.service" 644 << U
[Unit]
Description=Kubernetes API Server
Documentation=https://kubernetes.io/docs/
After=network-online.target etcd.service
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$kube_home/cfg/kube-apiserver
ExecStart=$kube_home/bin/kube-apiserver \$KUBE_APISERVER_OPTS
Restart=on-failure
RestartSec=2
LimitNOFILE=65536
$(server_sandbox)

[Install]
WantedBy=multi-user.target
U
start_service kube-apiserver
