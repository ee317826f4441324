#!/usr/bin/env bash
# Puts this node's pods on a network with those of the other nodes: a CNI configuration for the node's range of pod
# addresses, and a route to each other node's range. The nodes have to be on one network.
#
#   network.sh ADDRESS     the node's address, which is its name, too
#
# Needs /opt/kubernetes/bin/pod-network, /opt/kubernetes/cfg/kube-proxy.kubeconfig (kubeconfig.sh) and the CNI plug-ins
# (Debian: containernetworking-plugins); writes /opt/kubernetes/cfg/pod-network and the unit pod-network.service, which
# writes /etc/cni/net.d/10-pilothouse.conflist.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 1 1 "$@"
need_root
address=$1
need_own_address "$address"
need_component pod-network
need_file "$kube_home/cfg/kube-proxy.kubeconfig" 'copy it from the folder in which kubeconfig.sh was run'
need_program nft 'install the package nftables'
# Runtimes look for the plug-ins here; Debian puts them elsewhere.
if [ ! -e /opt/cni/bin/ptp ]; then
  need_file /usr/lib/cni/ptp 'install the package containernetworking-plugins'
  mkdir -p /opt/cni
  [ -e /opt/cni/bin ] || ln -s /usr/lib/cni /opt/cni/bin
  [ -e /opt/cni/bin/ptp ] || ln -s /usr/lib/cni/* /opt/cni/bin/
fi
make_kube_home

write_file "$kube_home/cfg/pod-network" 644 << C
POD_NETWORK_OPTS="--logtostderr=false \\
--v=2 \\
--log-dir=$kube_home/logs \\
--kubeconfig=$kube_home/cfg/kube-proxy.kubeconfig \\
--hostname-override=$address \\
--cluster-cidr=$pod_cidr"
C
write_file "$units/pod-network.service" 644 << U
[Unit]
Description=Network of Kubernetes' pods
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$kube_home/cfg/pod-network
ExecStart=$kube_home/bin/pod-network \$POD_NETWORK_OPTS
Restart=on-failure
RestartSec=2

[Install]
WantedBy=multi-user.target
U
start_service pod-network
