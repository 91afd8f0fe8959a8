"""The environment of processes that hold sites or the aggregator. Loads nothing."""

# one thread per pack; keep what is freed, up to 512 MiB apiece: large states are else page-faulted each round
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AUTO",  # see fedray/__init__.py; a worker may compute before it imports fedray
    "MALLOC_MMAP_THRESHOLD_": "536870912",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # the default of 15 starves the packs on a machine that does anything else
}
