#!/usr/bin/env bash
# Run one Ray node of a fedray cluster: token, mutual TLS, pinned ports, and a start again when it dies.
#
#   node.sh run  head|worker [-- FLAGS OF ray start]   run it here, end when it ends (systemd, Kubernetes)
#   node.sh keep head|worker [-- FLAGS OF ray start]   run it in the background, again and again (ray up)
#   node.sh stop                                       end what `keep` started
#   node.sh drain SECONDS                              take this node's work away, at most SECONDS
#   node.sh env                                        print the environment of the node
#
# Reads: FEDRAY_SECRETS (folder of token, ca.crt, node.crt, node.key; default ~/fedray-secrets), FEDRAY_HEAD
# (address of the head, for workers; RAY_HEAD_IP does as well), FEDRAY_NODE_IP (found by itself where unset),
# FEDRAY_LABELS (fedray.region=..,fedray.site=..), FEDRAY_DRAIN_S (seconds of grace on a stop, default 100),
# FEDRAY_GCS_PORT (default 6379, or the port in FEDRAY_HEAD; the same on all nodes), FEDRAY_CLOUD (aws or gcp: drain when the
# cloud takes the machine back), FEDRAY_WAIT_S (seconds that `keep` waits until the node listens, default 90).
set -euo pipefail

secrets="${FEDRAY_SECRETS:-$HOME/fedray-secrets}"
state="${FEDRAY_STATE:-${TMPDIR:-/tmp}/fedray-node-$(id -u)}"
gcs_port="${FEDRAY_GCS_PORT:-6379}"
node_port=6380

fail() {
  echo "fedray node: $1" >&2
  exit 2
}

set_environment() {
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$secrets/token}"
  export RAY_USE_TLS=1 RAY_TLS_CA_CERT="${RAY_TLS_CA_CERT:-$secrets/ca.crt}"
  export RAY_TLS_SERVER_CERT="${RAY_TLS_SERVER_CERT:-$secrets/node.crt}"
  export RAY_TLS_SERVER_KEY="${RAY_TLS_SERVER_KEY:-$secrets/node.key}"
  # a region that is cut off for a minute is not dead: Ray's default of 5 would end its node
  export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-20}"
  export RAY_gcs_rpc_server_reconnect_timeout_s="${RAY_gcs_rpc_server_reconnect_timeout_s:-120}"
  export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
  export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MKL_CBWR=AUTO
  export MALLOC_MMAP_THRESHOLD_=536870912 MALLOC_TRIM_THRESHOLD_=1073741824
  if [[ -z "${RAY_AUTH_TOKEN:-}" ]]; then unset RAY_AUTH_TOKEN; fi
}

check_secrets() {
  local file
  for file in "$RAY_TLS_CA_CERT" "$RAY_TLS_SERVER_CERT" "$RAY_TLS_SERVER_KEY"; do
    [[ -s "$file" ]] || fail "$file is missing or empty. Fix: fedray cluster certs, see cluster/README.md"
  done
  if [[ -z "${RAY_AUTH_TOKEN:-}" && ! -s "$RAY_AUTH_TOKEN_PATH" ]]; then
    fail "$RAY_AUTH_TOKEN_PATH is missing or empty. Fix: fedray cluster certs token"
  fi
}

check_settings() { # what is not a word of its kind would be noticed late, or never
  local head="${FEDRAY_HEAD:-${RAY_HEAD_IP:-}}" drain="${FEDRAY_DRAIN_S:-100}" cloud="${FEDRAY_CLOUD:-}"
  if [[ "$head" == *:* ]]; then
    [[ "${head##*:}" == "${FEDRAY_GCS_PORT:-${head##*:}}" ]] ||
      fail "FEDRAY_HEAD is $head, and FEDRAY_GCS_PORT $FEDRAY_GCS_PORT. Fix: the head's port in both, or in one"
    gcs_port="${head##*:}"
  fi
  [[ "$gcs_port" =~ ^[1-9][0-9]*$ ]] || fail "'$gcs_port' is no port. Fix: FEDRAY_GCS_PORT=6379"
  [[ "${FEDRAY_WAIT_S:-90}" =~ ^[1-9][0-9]*$ ]] || fail "FEDRAY_WAIT_S is '$FEDRAY_WAIT_S'. Fix: whole seconds"
  [[ "$drain" =~ ^(0|[1-9][0-9]*)$ ]] || fail "FEDRAY_DRAIN_S is '$drain'. Fix: whole seconds, FEDRAY_DRAIN_S=100"
  [[ "$cloud" =~ ^(|aws|gcp)$ ]] || fail "FEDRAY_CLOUD is '$cloud'. Fix: aws or gcp, or leave it out"
}

head_of_cluster() {
  local head="${FEDRAY_HEAD:-${RAY_HEAD_IP:-}}"
  [[ -n "$head" ]] || fail "FEDRAY_HEAD is not set. Fix: FEDRAY_HEAD=the head's private address"
  echo "${head%:*}"
}

own_address() { # the address from which this machine reaches $1; no packet is sent
  if [[ -n "${FEDRAY_NODE_IP:-}" ]]; then
    echo "$FEDRAY_NODE_IP"
    return
  fi
  python3 - "$1" <<'END'
import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
    try:
        asked.connect((sys.argv[1], 9))
    except OSError as error:
        sys.exit(f"fedray node: no way to {sys.argv[1]} ({error}). Fix: FEDRAY_NODE_IP=this machine's address")
    print(asked.getsockname()[0])
END
}

flags_of() { # fills the array `flags`
  local role="$1"
  shift
  flags=(--block --node-manager-port="$node_port" --object-manager-port=6381 --dashboard-agent-grpc-port=6382
    --runtime-env-agent-port=6383 --metrics-export-port=6384 --dashboard-agent-listen-port=52365
    --min-worker-port=10002 --max-worker-port=10999 --disable-usage-stats)
  case "$role" in
    head)
      address="$(own_address 192.0.2.1)" # an address for documentation: any will do to find the way out
      flags+=(--head --port="$gcs_port" --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=8265)
      ;;
    worker)
      local head
      head="$(head_of_cluster)"
      address="$(own_address "$head")"
      flags+=(--address="$head:$gcs_port")
      ;;
    *) fail "there is no role '$role'. Fix: head or worker" ;;
  esac
  flags+=(--node-ip-address="$address")
  if [[ -n "${FEDRAY_LABELS:-}" ]]; then flags+=(--labels="$FEDRAY_LABELS"); fi
  if [[ "${1:-}" == "--" ]]; then shift; fi
  flags+=("$@")
}

children_of() { # prints a process id a line
  local status
  while read -r status; do basename "${status%/status}"; done < <(
    grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status
  )
}

family_of() { # children, theirs, and so on
  local child
  for child in $(children_of "$1"); do
    echo "$child"
    family_of "$child"
  done
}

has_raylet() { # of the `ray start` process $1
  local child
  for child in $(children_of "$1"); do
    if [[ "$(cat "/proc/$child/comm" 2>/dev/null)" == raylet ]]; then return 0; fi
  done
  return 1
}

drain() { # at most $1 seconds, for the reason $2
  local head
  head="${FEDRAY_HEAD:-${RAY_HEAD_IP:-$address}}"
  python3 -m fedray.cluster.drain now --address "${head%:*}:$gcs_port" --node-ip "$address" --seconds "$1" \
    --reason "$2"
}

watch_notice() { # ends by itself with the drain, or with the node
  [[ "$1" == worker && -n "${FEDRAY_CLOUD:-}" ]] || return 0
  python3 -m fedray.cluster.drain watch --cloud "$FEDRAY_CLOUD" --address "$(head_of_cluster):$gcs_port" \
    --node-ip "$address" --metadata "${FEDRAY_METADATA:-http://169.254.169.254}" &
  watcher=$!
}

give_up() { # on SIGTERM and SIGINT: `ray start` takes the node's work away itself, at most FEDRAY_DRAIN_S
  trap '' TERM INT
  [[ -z "${watcher:-}" ]] || kill "$watcher" 2>/dev/null || true
  end_child "$1" "$2"
  exit 0
}

end_child() { # $1 with all that it started; by force where it takes longer than $2 seconds and some
  local family tick
  family="$1 $(family_of "$1" | tr '\n' ' ')"
  kill -TERM "$1" 2>/dev/null || true
  for ((tick = 0; tick < ($2 + 15) * 10; tick++)); do
    # shellcheck disable=SC2086 # words are process ids
    kill -0 $family 2>/dev/null || return 0 # fails where none of them is left
    sleep 0.1
  done
  # shellcheck disable=SC2086
  kill -KILL $family 2>/dev/null || true
}

run() { # one life of the node; ends with the exit code of `ray start --block`, or 1 where its raylet is gone
  local role="$1" child had_raylet="" code=0 watcher="" pause=0.2 grace="${FEDRAY_DRAIN_S:-100}" _
  flags_of "$@"
  [[ "$role" == worker ]] || grace=0 # nobody takes the head's work
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="$grace"
  ulimit -n "$(ulimit -Hn)" || true # a node holds a socket per process that it talks to
  ray start "${flags[@]}" &
  child=$!
  # shellcheck disable=SC2064 # child and grace are those of now
  trap "give_up $child $grace" TERM INT
  while kill -0 "$child" 2>/dev/null; do
    # `ray start --block` stays when its raylet leaves in peace: drained, or told to stop by another
    if has_raylet "$child"; then
      [[ -n "$had_raylet" ]] || watch_notice "$role"
      had_raylet=yes pause=2
    elif [[ -n "$had_raylet" ]]; then
      echo "fedray node: the raylet is gone" >&2
      end_child "$child" 0
      code=1
      if [[ -n "$watcher" ]] && ! kill -0 "$watcher" 2>/dev/null && wait "$watcher"; then
        echo "fedray node: the cloud takes this machine back; not joining again for 5 minutes" >&2
        trap 'exit 0' TERM INT
        for _ in {1..300}; do sleep 1; done
      fi
      break
    fi
    sleep "$pause"
  done
  [[ "$code" -ne 0 ]] || wait "$child" || code=$?
  [[ -z "$watcher" ]] || kill "$watcher" 2>/dev/null || true
  return "$code"
}

keep() {
  local role="$1" port ports=("$node_port") pid tick=0
  flags_of "$@"
  [[ "$role" == worker ]] || ports=("$gcs_port" "$node_port")
  stop
  mkdir -p "$state"
  chmod 700 "$state"
  setsid nohup "$BASH" "$0" again "$@" >>"$state/log" 2>&1 </dev/null &
  pid=$!
  echo "$pid $(birth_of "$pid")" >"$state/pid"
  for port in "${ports[@]}"; do
    until (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do
      if ((++tick > ${FEDRAY_WAIT_S:-90})); then
        tail -n 20 "$state/log" >&2
        fail "nothing listens at $address:$port yet; the lines above are the end of $state/log. It goes on trying. Fix: what they say, or node.sh stop ends it"
      fi
      sleep 1
    done
  done
}

birth_of() { # when process $1 started, which tells it from a later one of the same number
  local line words
  line="$(cat "/proc/$1/stat" 2>/dev/null)" || return 0
  read -ra words <<<"${line##*) }"
  echo "${words[19]}"
}

again() { # for ever: a region that comes back joins by itself
  local child
  while :; do
    "$BASH" "$0" run "$@" &
    child=$!
    # shellcheck disable=SC2064
    trap "trap '' TERM INT; kill -TERM $child 2>/dev/null; wait $child; exit 0" TERM INT
    wait "$child" || true
    echo "fedray node: starting again in 2 s" >&2
    sleep 2
  done
}

stop() {
  local pid="" birth="" tick
  [[ ! -s "$state/pid" ]] || read -r pid birth <"$state/pid"
  if [[ -z "$birth" || "$(birth_of "$pid")" != "$birth" ]]; then return 0; fi
  kill -TERM "$pid" 2>/dev/null || return 0
  for ((tick = 0; tick < ${FEDRAY_DRAIN_S:-100} + 30; tick++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 1
  done
  rm -f "$state/pid"
}

main() {
  local verb="${1:-}"
  set_environment
  case "$verb" in
    run | keep | again)
      check_settings
      check_secrets
      [[ $# -ge 2 ]] || fail "no role. Fix: node.sh $verb head, or node.sh $verb worker"
      "$verb" "${@:2}"
      ;;
    stop)
      check_settings
      stop
      ;;
    drain)
      check_settings
      check_secrets
      address="$(own_address "$(head_of_cluster)")"
      drain "${2:-100}" preemption
      ;;
    env) env | grep -E '^(RAY|OMP|MKL|MALLOC)_' | grep -v '^RAY_AUTH_TOKEN=' | sort ;;
    *) fail "there is no '$verb'. Fix: run, keep, stop, drain or env" ;;
  esac
}

main "$@"
