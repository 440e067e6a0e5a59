"""Certificates: order-statistic bounds, the sampler that draws for them, guarantees for a whole set."""

from certiqa.certification.guarantees import certified_krocc, certified_mse, certified_plcc, certified_srocc
from certiqa.certification.ranks import (
    certified_interval,
    joint_confidence_per_side,
    largest_radius,
    median_interval,
    order_statistic_ranks,
    smallest_num_samples,
    validate_request,
)
from certiqa.certification.sampler import Certificates, certify, check_certificate_request, require_certifiable

__all__ = [
    "Certificates",
    "certified_interval",
    "certified_krocc",
    "certified_mse",
    "certified_plcc",
    "certified_srocc",
    "certify",
    "check_certificate_request",
    "joint_confidence_per_side",
    "largest_radius",
    "median_interval",
    "order_statistic_ranks",
    "require_certifiable",
    "smallest_num_samples",
    "validate_request",
]
