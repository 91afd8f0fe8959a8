"""The ports of a fedray cluster: one list for start commands, firewalls, checks and the table of the README.

Ray picks most of its ports at random unless told; pinned, they fit into a firewall's rule. Loads nothing.
"""

GCS = 6379  # on the head: nodes register here, drivers ask here
NODE_MANAGER = 6380
OBJECT_MANAGER = 6381  # models travel here
AGENT_GRPC = 6382  # state and logs of a node, asked for by the head
RUNTIME_ENV_AGENT = 6383  # asked by the node itself only
METRICS = 6384  # answers without a token: open it to a Prometheus of your own or to nobody
RAY_CLIENT = 10001  # on the head, where Ray opens it by itself: for `ray://`, which fedray does not use
DASHBOARD = 8265  # on the head, bound to loopback
AGENT_HTTP = 52365  # asked by the node itself only
WORKERS = (10002, 10999)  # every process with an actor or a task, and every driver
SSH = 22

# what other nodes of the cluster must reach, on every node, in both directions
BETWEEN_NODES = ((GCS, AGENT_GRPC), WORKERS)
LARGEST_POOL = 1022  # addresses on the certificate that a subnet's nodes share: some 7 kB at each handshake
