"""Passes decide what the server may learn: each is `Graph -> Graph`, and none knows an algorithm or a
host.
"""

from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.core.trust import trust_statement
from fedray.passes.adaptive import site_dp_adaptive
from fedray.passes.clipping import clip
from fedray.passes.compression import ef21, qsgd, randk, scaled_sign, sign, topk
from fedray.passes.distributed import site_dp_distributed
from fedray.passes.distributed_record import distributed_record
from fedray.passes.downlink import bidirectional, ef21_broadcast, quantised_broadcast
from fedray.passes.matrix import site_dp_matrix
from fedray.passes.policy import require
from fedray.passes.powersgd import powersgd
from fedray.passes.privacy import site_dp, site_dp_local
from fedray.passes.quarantine import quarantine
from fedray.passes.robust_memory import centred_clipping, fltrust, foolsgold, norm_bound
from fedray.passes.robust_rules import (
    bucketing,
    bulyan,
    krum,
    median,
    multi_krum,
    nnm,
    residual_reweighting,
    rfa,
    three_sigma,
    trimmed_mean,
)
from fedray.passes.secure_sum import group_secure_sum, secure_sum
from fedray.passes.two_server import two_server

__all__ = [
    "Pass",
    "bidirectional",
    "bucketing",
    "bulyan",
    "centred_clipping",
    "clip",
    "distributed_record",
    "ef21",
    "ef21_broadcast",
    "fltrust",
    "foolsgold",
    "group_secure_sum",
    "krum",
    "median",
    "multi_krum",
    "nnm",
    "norm_bound",
    "on_reduce",
    "powersgd",
    "qsgd",
    "quantised_broadcast",
    "quarantine",
    "randk",
    "require",
    "residual_reweighting",
    "rewrite",
    "rfa",
    "scaled_sign",
    "secure_sum",
    "sign",
    "site_dp",
    "site_dp_adaptive",
    "site_dp_distributed",
    "site_dp_local",
    "site_dp_matrix",
    "three_sigma",
    "topk",
    "trimmed_mean",
    "trust_statement",
    "two_server",
]
