#!/usr/bin/env bash
# Make what a node is given: token, ca.crt, node.crt and node.key, together in one folder.
#
#   handout.sh init                      the authority and the token, once per cluster; again: what is missing
#   handout.sh node NAME IP [IP...]      one machine, known by its addresses (join units, fixed heads)
#   handout.sh pool NAME CIDR            machines that come and go in a subnet: one certificate for all addresses
#
# FOLDER (environment; default ~/.fedray/cluster) holds the authority. Its ca.key signs, and never leaves this
# machine; FOLDER/handout/NAME is what `ray up` (file_mounts) or you copy to a node.
set -euo pipefail
umask 077
folder="${FOLDER:-$HOME/.fedray/cluster}"

fail() {
  echo "handout: $1" >&2
  exit 2
}

certs() {
  command -v fedray >/dev/null || fail "there is no command 'fedray'. Fix: activate the environment first: . .venv/bin/activate"
  fedray cluster certs "$@" --folder "$folder"
}

init() { # what is missing: an init that was stopped goes on
  [[ -s "$folder/ca.crt" && -s "$folder/ca.key" ]] || certs init
  [[ -s "$folder/token" ]] || certs token
  echo "$folder has an authority and a token"
}

hand_out() {
  local to="$folder/handout/$1" file
  mkdir -p "$to"
  for file in ca.crt node.crt node.key; do install -m 600 "$folder/nodes/$1/$file" "$to/$file"; done
  install -m 600 "$folder/token" "$to/token"
  echo "$to"
}

node() {
  local name="$1" address ips=() again=()
  shift
  [[ "$name" != -* ]] || fail "'$name' is no name of a node. Fix: handout.sh node h001 10.0.0.2"
  [[ -s "$folder/token" ]] || fail "there is no token in $folder. Fix: handout.sh init"
  for address in "$@"; do ips+=(--ip "$address"); done
  [[ -e "$folder/nodes/$name/node.crt" ]] && again=(--renew)
  certs node "$name" "${ips[@]}" "${again[@]}" >/dev/null # its advice is for folders without a token
  hand_out "$name"
}

addresses_of() { # every address of a subnet that a machine may have
  python3 - "$1" <<'END'
import ipaddress
import sys

LARGEST = 1024  # addresses: some 7 kB of certificate, sent at each handshake
try:
    subnet = ipaddress.ip_network(sys.argv[1])
except ValueError as error:
    sys.exit(f"handout: {error}. Fix: a subnet such as 10.0.8.0/24")
if subnet.num_addresses > LARGEST:
    sys.exit(f"handout: {subnet} has {subnet.num_addresses} addresses. Fix: a subnet of /24, or `node` per machine")
print(*subnet.hosts(), sep="\n")
END
}

case "${1:-}" in
  init) init ;;
  node)
    [[ $# -ge 3 ]] || fail "a name and an address are needed. Fix: handout.sh node NAME IP"
    node "${@:2}"
    ;;
  pool)
    [[ $# -eq 3 ]] || fail "a name and a subnet are needed. Fix: handout.sh pool pool 10.0.8.0/24"
    addresses="$(addresses_of "$3")"
    mapfile -t ips <<<"$addresses"
    node "$2" "${ips[@]}"
    ;;
  *) fail "init, node or pool" ;;
esac
