#!/usr/bin/env bash
# Makes the token with which kubelets ask for their first certificate: /opt/kubernetes/cfg/token.csv.
#
#   token.sh
#
# A file that is there and is in order is kept: kubelets may have its token.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 0 0 "$@"
need_root
make_kube_home
file=$kube_home/cfg/token.csv
if [ -s "$file" ]; then
  bad=$(grep -nvE '^[^,[:space:]]+,[^,]+,[^,]*(,"?[^"]*"?)?$' "$file" | head -n 1 | cut -d: -f1 || true)
  [ -z "$bad" ] || die "$file: line $bad is not TOKEN,USER,UID,\"GROUP,...\""
  say "$file is there and is kept"
  exit
fi
token=$(head -c 16 /dev/urandom | od -An -t x | tr -d ' \n')
printf '%s,kubelet-bootstrap,10001,"system:kubelet-bootstrap"\n' "$token" | write_file "$file" 600
