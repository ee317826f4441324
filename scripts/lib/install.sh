# shellcheck shell=bash disable=SC2034
# What the scripts of the binary install share: checks of arguments and files, files that are written whole or not at
# all, certificates, kubeconfigs, systemd units. Sourced by bash with `set -euo pipefail`.
#
# `scripts/bundle` puts this text and the files that scripts read into each script, so that a script can be copied anywhere.

etcd_home=/opt/etcd
kube_home=/opt/kubernetes
units=/usr/lib/systemd/system
api_port=6443
pod_cidr=10.244.0.0/16
service_cidr=10.0.0.0/24
service_dns=10.0.0.2

say() { printf '%s\n' "$*"; }
warn() { printf 'Warning: %s\n' "$*" >&2; }
die() { printf 'Error: %s\n' "$*" >&2; exit 1; }

# The comment at the top of the script, as its help.
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

# Ends with the help where it is asked for, and with an error where the number of arguments is wrong.
arguments() { # LEAST MOST ARGUMENT...
  local least=$1 most=$2
  shift 2
  case ${1:-} in -h | --help) usage; exit 0 ;; esac
  if [ $# -lt "$least" ] || [ $# -gt "$most" ]; then
    usage >&2
    die "$(basename "$0") takes $least$([ "$most" = "$least" ] || echo " to $most") arguments, not $#"
  fi
}

need_root() { [ "$(id -u)" = 0 ] || die 'run it as root'; }

need_program() { # PROGRAM WHERE IT COMES FROM
  command -v "$1" > /dev/null || die "$1 is not there: $2"
}

need_file() { # FILE WHERE IT COMES FROM
  [ -e "$1" ] || die "$1 is not there: $2"
  [ -r "$1" ] || die "$1 cannot be read"
  [ -s "$1" ] || die "$1 is empty"
}

is_ipv4() {
  local part parts
  [[ $1 =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]] || return 1
  IFS=. read -ra parts <<< "$1"
  for part in "${parts[@]}"; do [ "$((10#$part))" -le 255 ] || return 1; done
}

need_ipv4() { is_ipv4 "$1" || die "'$1' is not an IPv4 address"; }

own_addresses() { ip -4 -o address show 2> /dev/null | awk '{sub("/.*", "", $4); print $4}'; }

# An address that this machine has, so that a server can listen there.
need_own_address() {
  need_ipv4 "$1"
  own_addresses | grep -qxF "$1" ||
    die "$1 is not an address of this machine (it has: $(own_addresses | grep -v '^127\.' | paste -sd ' '))"
}

# ---- files ----

changed=

# Puts standard input into a file, whole or not at all. `changed` is set where it was not there or was different.
write_file() { # FILE MODE
  local file=$1 mode=$2 new
  mkdir -p "$(dirname "$file")"
  new=$(mktemp "$file.XXXXXX")
  cat > "$new" || { rm -f "$new"; die "$file could not be written"; }
  chmod "$mode" "$new"
  if [ -f "$file" ] && cmp -s "$new" "$file"; then
    rm -f "$new"
    chmod "$mode" "$file"
  else
    mv -f "$new" "$file"
    changed=1
    say "wrote $file"
  fi
}

# A file of the project: out of this script where it is a bundled one, else from the project's folder.
project_file() { # certs/etcd/ca-csr.json
  if declare -F bundled > /dev/null; then
    bundled "$1" || die "$1 is not in this script"
  else
    cat "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../$1" || die "$1 is not there"
  fi
}

# ---- certificates ----

need_cfssl() {
  need_program cfssl 'make a link of that name to the pilothouse program'
  need_program cfssljson 'make a link of that name to the pilothouse program'
}

# The request of standard input with other hosts.
with_hosts() { # HOST...
  local list host
  for host in "$@"; do list=${list:+$list,$'\n'}"    \"$host\""; done
  HOSTS=$list awk '
    /"hosts": \[/ { print; print ENVIRON["HOSTS"]; skip = 1; next }
    skip && /\]/ { skip = 0 }
    !skip'
}

# Makes NAME.pem and NAME-key.pem in the current folder from NAME-csr.json, signed by the authority there; keeps
# what is there where the request is the one it was made for.
certificate() { # NAME PROFILE < REQUEST
  local name=$1 profile=$2 request old=
  request=$(cat)
  [ ! -f "$name-csr.json" ] || old=$(cat "$name-csr.json")
  if [ "$request" = "$old" ] && current "$name" ca.pem; then
    say "$name.pem is there and is kept"
    return
  fi
  printf '%s\n' "$request" > "$name-csr.json"
  cfssl gencert -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json -profile="$profile" "$name-csr.json" |
    cfssljson -bare "$name" || die "$name.pem could not be made (see above)"
  say "made $name.pem and $name-key.pem"
}

# Whether NAME.pem and its key are there, come from the authority, and hold for a month yet.
current() { # NAME CA
  local name=$1 issuer own end
  [ -s "$name.pem" ] && [ -s "$name-key.pem" ] || return 1
  own=$(certinfo "$name.pem" authority_key_id) issuer=$(certinfo "$2" subject_key_id)
  [ -n "$own" ] && [ "$own" = "$issuer" ] || return 1
  end=$(certinfo "$name.pem" not_after)
  [ "$(date -d "$end" +%s)" -gt "$(date -d '+30 days' +%s)" ]
}

certinfo() { # FILE FIELD
  cfssl certinfo -cert "$1" 2> /dev/null | sed -n "s/^  \"$2\": \"\(.*\)\",\{0,1\}\$/\1/p"
}

# Whether a certificate is for that address or name.
certificate_is_for() { # FILE HOST
  cfssl certinfo -cert "$1" 2> /dev/null | sed -n '/"sans": \[/,/\]/p' | grep -qF "\"$2\""
}

# The authority of the current folder: made where there is none, never replaced.
authority() { # FOLDER OF certs/
  project_file "certs/$1/ca-config.json" > ca-config.json
  if [ -s ca.pem ] && [ -s ca-key.pem ]; then
    certinfo ca.pem not_after | grep -q . || die "$PWD/ca.pem is not a certificate"
    say 'ca.pem is there and is kept'
    return
  fi
  if [ -e ca.pem ] || [ -e ca-key.pem ]; then
    die "only one of $PWD/ca.pem and $PWD/ca-key.pem is there: put the other one back, or remove it"
  fi
  project_file "certs/$1/ca-csr.json" > ca-csr.json
  cfssl gencert -initca ca-csr.json | cfssljson -bare ca - || die 'ca.pem could not be made (see above)'
  say 'made ca.pem and ca-key.pem'
}

# Makes a client's certificate by the cluster's authority, and a kubeconfig with it. A kubeconfig that is there for
# the same server and by the same authority is kept.
client_kubeconfig() { # FILE SERVER USER REQUEST-NAME
  local file=$1 server=$2 user=$3 name=$4 dir ca=$kube_home/ssl/ca.pem
  need_cfssl
  need_file "$ca" 'copy it from the folder in which k8s-cert.sh was run'
  need_file "$kube_home/ssl/ca-key.pem" 'copy it from the folder in which k8s-cert.sh was run'
  if [ -s "$file" ] && grep -qF "server: $server" "$file" && grep -qF "$(base64 -w0 < "$ca")" "$file"; then
    dir=$(mktemp -d)
    sed -n 's/^ *client-certificate-data: //p' "$file" | base64 -d > "$dir/own.pem" 2> /dev/null || true
    cp "$dir/own.pem" "$dir/own-key.pem"
    if current "$dir/own" "$ca"; then
      rm -rf "$dir"
      say "$file is there and is kept"
      return
    fi
    rm -rf "$dir"
  fi
  dir=$(mktemp -d)
  cp "$ca" "$kube_home/ssl/ca-key.pem" "$dir"
  project_file certs/kubernetes/ca-config.json > "$dir/ca-config.json"
  project_file "certs/kubernetes/$name-csr.json" > "$dir/request.json"
  (cd "$dir" && certificate "$name" kubernetes < request.json > /dev/null) || { rm -rf "$dir"; exit 1; }
  kubeconfig "$ca" "$server" "$user" "$dir/$name.pem" "$dir/$name-key.pem" | write_file "$file" 600
  # The subshell of the pipe cannot say it.
  changed=1
  rm -rf "$dir"
}

# ---- kubeconfigs ----

# A kubeconfig with everything in it, on standard output: for a client certificate, or with `--token TOKEN`.
kubeconfig() { # CA SERVER USER CERT KEY | CA SERVER USER --token TOKEN
  cat << Y
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: $(base64 -w0 < "$1")
    server: $2
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: $3
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: $3
  user:
Y
  if [ "$4" = --token ]; then
    printf '    token: %s\n' "$5"
  else
    printf '    client-certificate-data: %s\n' "$(base64 -w0 < "$4")"
    printf '    client-key-data: %s\n' "$(base64 -w0 < "$5")"
  fi
}

# ---- units ----

# Directives for a server that touches nothing but its own files. They are left out where systemd runs in a
# container that does not let it make such name spaces.
server_sandbox() {
  cat << 'U'
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full
ProtectHome=read-only
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
UMask=0027
U
}

# Enables a service, and starts it anew where something has changed or it is not running. Says why it does not start.
start_service() { # NAME
  local name=$1
  systemctl daemon-reload
  systemctl -q enable "$name"
  if [ -z "$changed" ] && systemctl -q is-active "$name"; then
    say "$name is running and nothing has changed"
    return
  fi
  if ! systemctl restart "$name"; then
    {
      echo "last lines of its journal:"
      journalctl -q -u "$name" -n 12 --no-pager -o cat
    } >&2
    die "$name did not start; see \`systemctl status $name\`, \`journalctl -u $name\` and ${2:-$kube_home/logs}"
  fi
  say "$name is running"
}

# The folders of a machine of the cluster.
make_kube_home() {
  mkdir -p "$kube_home"/{bin,cfg,ssl,logs}
  chmod 700 "$kube_home/ssl" "$kube_home/cfg"
}

need_component() { # NAME
  local file=$kube_home/bin/$1
  [ -e "$file" ] || die "$file is not there: copy it (it can be a link named $1 to the pilothouse program)"
  [ -x "$file" ] || die "$file cannot be executed"
}
