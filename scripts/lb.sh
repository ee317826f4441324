#!/usr/bin/env bash
# Makes this machine one of those in front of the API servers: nginx passes connections on, keepalived holds the
# address that clients use.
#
#   lb.sh ADDRESS VIRTUAL_IP MASTER MASTER...     lb.sh 20.0.0.112 20.0.0.111 20.0.0.100 20.0.0.101
#
# The machine that is not the first to have the virtual address is set up with ROLE=BACKUP in the environment. Needs
# Debian's packages nginx, libnginx-mod-stream and keepalived.
set -euo pipefail
# shellcheck source=lib/install.sh
. "$(dirname "$(readlink -f "$0")")/lib/install.sh"

arguments 3 9 "$@"
need_root
address=$1 virtual=$2 role=${ROLE:-MASTER}
shift 2
case $role in MASTER) priority=100 ;; BACKUP) priority=90 ;; *) die "ROLE is '$role', not MASTER or BACKUP" ;; esac
need_own_address "$address"
need_ipv4 "$virtual"
for master in "$@"; do need_ipv4 "$master"; done
need_program nginx 'install the packages nginx and libnginx-mod-stream'
need_program keepalived 'install the package keepalived'
interface=$(ip -4 -o address show | awk -v a="$address" '{sub("/.*", "", $4)} $4 == a {print $2; exit}')

nginx_conf() {
  cat << 'N'
stream {
  log_format main '$remote_addr $upstream_addr - [$time_local] $status $upstream_bytes_sent';
  access_log /var/log/nginx/k8s-access.log main;
  upstream k8s-apiserver {
N
  for master in "$@"; do printf '    server %s:%s max_fails=1 fail_timeout=2s;\n' "$master" "$api_port"; done
  cat << N
  }
  server {
    listen $api_port;
    proxy_connect_timeout 1s;
    # Watches are quiet for long.
    proxy_timeout 1h;
    proxy_pass k8s-apiserver;
  }
}
N
}
write_file /etc/nginx/k8s-apiserver.conf 644 < <(nginx_conf "$@")
mkdir -p /var/log/nginx
if ! grep -qxF 'include /etc/nginx/k8s-apiserver.conf;' /etc/nginx/nginx.conf; then
  echo 'include /etc/nginx/k8s-apiserver.conf;' >> /etc/nginx/nginx.conf
  changed=1
fi
nginx -t -q || die 'nginx does not take /etc/nginx/k8s-apiserver.conf (see above)'
start_service nginx /var/log/nginx

changed=

write_file /etc/keepalived/check_nginx.sh 755 << 'K'
#!/bin/sh
# Whether nginx takes connections for the API servers.
test -n "$(ss -Hltn sport = :6443)"
K
write_file /etc/keepalived/keepalived.conf 644 << K
global_defs {
  router_id NGINX_$role
  script_user root
  enable_script_security
}
vrrp_script check_nginx {
  script "/etc/keepalived/check_nginx.sh"
  interval 1
  fall 2
  rise 2
}
vrrp_instance VI_1 {
  state $role
  interface $interface
  virtual_router_id 51
  priority $priority
  advert_int 1
  authentication {
    auth_type PASS
    auth_pass 1111
  }
  virtual_ipaddress {
    $virtual/24
  }
  track_script {
    check_nginx
  }
}
K
start_service keepalived 'its journal'
