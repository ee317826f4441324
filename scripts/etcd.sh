#!/usr/bin/env bash
# Sets up this machine's member of an etcd cluster and starts it.
#
#   etcd.sh NAME ADDRESS OTHERS     etcd.sh etcd01 20.0.0.100 etcd02=https://20.0.0.103:2380,etcd03=https://20.0.0.104:2380
#
# OTHERS may hold this member too. Needs /opt/etcd/bin/{etcd,etcdctl} and /opt/etcd/ssl/{ca,server,server-key}.pem; writes
# /opt/etcd/cfg/etcd and the unit etcd.service, which reads it: on another machine the same unit needs only that file's
# name and addresses changed. The first member waits, and so does this script, until most of the members are there.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 3 3 "$@"
need_root
name=$1 address=$2 others=$3
[[ $name =~ ^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$ ]] || die "'$name' is no member's name"
need_own_address "$address"
for program in etcd etcdctl; do
  need_file "$etcd_home/bin/$program" "copy it from etcd's archive"
  [ -x "$etcd_home/bin/$program" ] || die "$etcd_home/bin/$program cannot be executed"
done
for file in ca server server-key; do
  need_file "$etcd_home/ssl/$file.pem" 'copy it from the folder in which etcd-cert.sh was run'
done
chmod 600 "$etcd_home"/ssl/*-key.pem
if command -v cfssl > /dev/null && ! certificate_is_for "$etcd_home/ssl/server.pem" "$address"; then
  die "$etcd_home/ssl/server.pem is not for $address: run etcd-cert.sh with the addresses of all members"
fi

cluster=$name=https://$address:2380
IFS=, read -ra members <<< "$others"
for member in "${members[@]}"; do
  [[ $member =~ ^[A-Za-z0-9._-]+=https://[0-9.]+:[0-9]+$ ]] || die "'$member' is not NAME=https://ADDRESS:PORT"
  at=${member#*=https://}
  need_ipv4 "${at%:*}"
  [ "${member%%=*}" = "$name" ] || cluster+=,$member
done

write_file "$etcd_home/cfg/etcd" 644 << C
#[Member]
ETCD_NAME="$name"
ETCD_DATA_DIR="/var/lib/etcd/default.etcd"
ETCD_LISTEN_PEER_URLS="https://$address:2380"
ETCD_LISTEN_CLIENT_URLS="https://$address:2379"

#[Clustering]
ETCD_INITIAL_ADVERTISE_PEER_URLS="https://$address:2380"
ETCD_ADVERTISE_CLIENT_URLS="https://$address:2379"
ETCD_INITIAL_CLUSTER="$cluster"
ETCD_INITIAL_CLUSTER_TOKEN="etcd-cluster"
ETCD_INITIAL_CLUSTER_STATE="new"
C
write_file "$units/etcd.service" 644 << U
[Unit]
Description=etcd
Documentation=https://etcd.io/docs/
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$etcd_home/cfg/etcd
ExecStart=$etcd_home/bin/etcd \\
  --cert-file=$etcd_home/ssl/server.pem \\
  --key-file=$etcd_home/ssl/server-key.pem \\
  --trusted-ca-file=$etcd_home/ssl/ca.pem \\
  --client-cert-auth \\
  --peer-cert-file=$etcd_home/ssl/server.pem \\
  --peer-key-file=$etcd_home/ssl/server-key.pem \\
  --peer-trusted-ca-file=$etcd_home/ssl/ca.pem \\
  --peer-client-cert-auth \\
  --logger=zap
# It is there when most of the members are.
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=2
LimitNOFILE=65536
$(server_sandbox)
# It is made where it is not there, as on a machine that this file was copied to.
StateDirectory=etcd
StateDirectoryMode=0700

[Install]
WantedBy=multi-user.target
U
say 'etcd waits until most of the members are there: start the others too'
start_service etcd 'its journal'
