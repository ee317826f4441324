#!/usr/bin/env bash
# Sets up and starts this machine's kubelet. It asks for a certificate and waits until somebody approves that:
# `kubectl get csr`, `kubectl certificate approve`.
#
#   kubelet.sh ADDRESS [DNS]     kubelet.sh 20.0.0.103; DNS is the cluster's name server, 10.0.0.2 if not given
#
# ADDRESS is the node's name, too. Needs /opt/kubernetes/bin/kubelet, /opt/kubernetes/cfg/bootstrap.kubeconfig
# (kubeconfig.sh) and a container runtime with CRI (containerd); writes /opt/kubernetes/cfg/kubelet{,.config} and the unit
# kubelet.service. In the environment: CONTAINER_RUNTIME_ENDPOINT, CGROUP_DRIVER (cgroupfs or systemd).
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 1 2 "$@"
need_root
address=$1 dns=${2:-$service_dns}
need_own_address "$address"
need_ipv4 "$dns"
endpoint=${CONTAINER_RUNTIME_ENDPOINT:-unix:///run/containerd/containerd.sock}
driver=${CGROUP_DRIVER:-cgroupfs}
case $driver in cgroupfs | systemd) ;; *) die "CGROUP_DRIVER is '$driver', not cgroupfs or systemd" ;; esac
need_component kubelet
need_file "$kube_home/cfg/bootstrap.kubeconfig" 'copy it from the folder in which kubeconfig.sh was run'
make_kube_home
chmod 600 "$kube_home/cfg/bootstrap.kubeconfig"
# The authority that the API server's client certificate comes from.
sed -n 's/^ *certificate-authority-data: //p' "$kube_home/cfg/bootstrap.kubeconfig" | base64 -d > "$kube_home/ssl/.ca.pem" ||
  die "$kube_home/cfg/bootstrap.kubeconfig holds no certificate authority"
[ -s "$kube_home/ssl/.ca.pem" ] || die "$kube_home/cfg/bootstrap.kubeconfig holds no certificate authority"
write_file "$kube_home/ssl/ca.pem" 644 < "$kube_home/ssl/.ca.pem"
rm -f "$kube_home/ssl/.ca.pem"

write_file "$kube_home/cfg/kubelet.config" 644 << C
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
address: 0.0.0.0
port: 10250
readOnlyPort: 0
cgroupDriver: $driver
clusterDNS:
- $dns
clusterDomain: cluster.local
failSwapOn: false
rotateCertificates: true
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
    cacheTTL: 2m0s
  x509:
    clientCAFile: $kube_home/ssl/ca.pem
authorization:
  mode: Webhook
  webhook:
    cacheAuthorizedTTL: 5m0s
    cacheUnauthorizedTTL: 30s
evictionHard:
  imagefs.available: 15%
  memory.available: 100Mi
  nodefs.available: 10%
  nodefs.inodesFree: 5%
maxOpenFiles: 1000000
maxPods: 110
C
write_file "$kube_home/cfg/kubelet" 644 << C
KUBELET_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--hostname-override=$address \\
--network-plugin=cni \\
--container-runtime=remote \\
--container-runtime-endpoint=$endpoint \\
--kubeconfig=$kube_home/cfg/kubelet.kubeconfig \\
--bootstrap-kubeconfig=$kube_home/cfg/bootstrap.kubeconfig \\
--config=$kube_home/cfg/kubelet.config \\
--cert-dir=$kube_home/ssl \\
--pod-infra-container-image=k8s.gcr.io/pause:3.2"
C
write_file "$units/kubelet.service" 644 << U
[Unit]
Description=Kubernetes Kubelet
Documentation=https://kubernetes.io/docs/
After=network-online.target containerd.service docker.service
Wants=network-online.target containerd.service

[Service]
Type=notify
EnvironmentFile=$kube_home/cfg/kubelet
ExecStart=$kube_home/bin/kubelet \$KUBELET_OPTS
# Pods run on while it is away.
KillMode=process
Restart=always
RestartSec=2
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
U
start_service kubelet
if [ ! -e "$kube_home/cfg/kubelet.kubeconfig" ]; then
  say 'it has asked for its certificate; on a master: kubectl get csr, kubectl certificate approve NAME'
fi
