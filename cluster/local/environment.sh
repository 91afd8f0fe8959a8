# Read by every shell on a machine of the cluster and by its start commands: see ../local.yaml. For bash.

# Every node shows the token, and every connection has certificates on both sides.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/fedray-secrets/token"
export RAY_USE_TLS=1 RAY_TLS_CA_CERT="$HOME/fedray-secrets/ca.crt"
export RAY_TLS_SERVER_CERT="$HOME/fedray-secrets/node.crt" RAY_TLS_SERVER_KEY="$HOME/fedray-secrets/node.key"

# A line that is down for a minute ends no node (Ray's default of 5 does): about four minutes do.
export RAY_health_check_failure_threshold=20 RAY_gcs_rpc_server_reconnect_timeout_s=120

# As fedray starts its own workers: one thread for each pack of sites, memory kept between rounds.
export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MKL_CBWR=AUTO
export MALLOC_MMAP_THRESHOLD_=536870912 MALLOC_TRIM_THRESHOLD_=1073741824

# The ports of a node, for a firewall's sake; the head's own is 6379.
FEDRAY_PORTS="--node-manager-port=6380 --object-manager-port=6381 --dashboard-agent-grpc-port=6382"
FEDRAY_PORTS="$FEDRAY_PORTS --runtime-env-agent-port=6383 --metrics-export-port=6384"
FEDRAY_PORTS="$FEDRAY_PORTS --min-worker-port=10002 --max-worker-port=10999"

# This machine's line of nodes.txt, and the address of the head, which is the first.
unset FEDRAY_NODE_IP FEDRAY_LABELS FEDRAY_HEAD
fedray_own=" $(hostname -I) "
while read -r fedray_address fedray_labels; do
  case "$fedray_address" in '' | '#'*) continue ;; esac
  export FEDRAY_HEAD="${FEDRAY_HEAD:-$fedray_address:6379}"
  case "$fedray_own" in
    *" $fedray_address "*) export FEDRAY_NODE_IP="$fedray_address" FEDRAY_LABELS="$fedray_labels" ;;
  esac
done <"$HOME/fedray-node/nodes.txt"
unset fedray_own fedray_address fedray_labels
