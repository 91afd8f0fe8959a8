#!/usr/bin/env bash
# Make a machine a node of a fedray cluster: a user, an environment with the pinned versions, the unit.
#
#   sudo ./install.sh WHEEL SECRETS      fedray-*.whl, and the folder from cluster/tls/handout.sh node NAME IP
#
# Needs constraints.txt, node.sh, node.env and fedray-node.service beside it, or the repository around it. Without a
# network: FEDRAY_WHEELS=FOLDER of wheels. Run it again to update; it leaves /etc/fedray/node.env as you made it.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
target=/usr/local/lib/fedray

fail() {
  echo "install: $1" >&2
  exit 2
}

find_file() { # beside this script, or where the repository has it
  local place
  for place in "$here" "$here/.." "$here/../.."; do
    if [[ -e "$place/$1" ]]; then
      echo "$place/$1"
      return
    fi
  done
  fail "$1 is not beside this script. Fix: copy it from the repository"
}

check() {
  [[ "$(id -u)" -eq 0 ]] || fail "this writes /etc and /usr/local. Fix: sudo"
  [[ $# -eq 2 && -f "$1" && -d "$2" ]] || fail "a wheel and a folder are needed. Fix: install.sh WHEEL SECRETS"
  local file
  for file in token ca.crt node.crt node.key; do
    [[ -s "$2/$file" ]] || fail "$2/$file is missing or empty. Fix: cluster/tls/handout.sh node NAME IP"
  done
  python3.11 -c 'import ensurepip, venv' || fail "no Python 3.11. Fix: apt install python3.11-venv"
}

install_packages() {
  local from=()
  [[ -z "${FEDRAY_WHEELS:-}" ]] || from=(--no-index --find-links "$FEDRAY_WHEELS")
  python3.11 -m venv "$target"
  "$target/bin/pip" install --quiet --disable-pip-version-check "${from[@]}" -c "$(find_file constraints.txt)" "$1"
}

install_node() {
  id fedray >/dev/null 2>&1 || useradd --system --home-dir /var/lib/fedray --shell /usr/sbin/nologin fedray
  install -d -o fedray -g fedray -m 700 /var/lib/fedray /var/lib/fedray/tmp /etc/fedray/secrets
  install -o fedray -g fedray -m 600 "$1"/{token,ca.crt,node.crt,node.key} /etc/fedray/secrets
  install -m 755 "$(find_file node.sh)" /usr/local/bin/fedray-node
  install -m 644 "$(find_file fedray-node.service)" /etc/systemd/system/fedray-node.service
  [[ -e /etc/fedray/node.env ]] || install -m 644 "$(find_file node.env)" /etc/fedray/node.env
}

install_network() { # a cut link is used again seconds after its heal, not after as long as it was cut (Linux 6.15)
  echo "-net.ipv4.tcp_rto_max_ms = 5000" >/etc/sysctl.d/90-fedray.conf
  sysctl -q -e -p /etc/sysctl.d/90-fedray.conf || true
}

check "$@"
install_packages "$1"
install_node "$2"
install_network
systemctl daemon-reload
echo "install: edit /etc/fedray/node.env, then: systemctl enable --now fedray-node; journalctl -fu fedray-node"
