#!/usr/bin/env bash
# Makes ~/.kube/config, with which kubectl administers the cluster, and lets the API servers reach the kubelets (for
# logs, exec and port-forward).
#
#   admin.sh [ADDRESS]     the API server's address, 127.0.0.1 if not given
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 0 1 "$@"
need_root
address=${1:-127.0.0.1}
need_ipv4 "$address"
umask 077
client_kubeconfig "$HOME/.kube/config" "https://$address:$api_port" cluster-admin admin
kubectl=$(PATH=$kube_home/bin:$PATH command -v kubectl) || die "kubectl is not there: copy it to $kube_home/bin"
# The API server's certificate names it `kubernetes`.
"$kubectl" --kubeconfig "$HOME/.kube/config" apply -f - << 'Y' || die "the API server at $address does not answer as it should"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: kube-apiserver-to-kubelet
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: system:kubelet-api-admin
subjects:
- apiGroup: rbac.authorization.k8s.io
  kind: User
  name: kubernetes
Y
