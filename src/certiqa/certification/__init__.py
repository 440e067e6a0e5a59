"""Certificates: order-statistic bounds, the sampler that draws for them, guarantees for a whole set."""

from certiqa.certification.guarantees import certified_krocc, certified_mse, certified_plcc, certified_srocc
from certiqa.certification.progress import ImageCertificate
from certiqa.certification.ranks import (
    certified_interval,
    joint_confidence_per_side,
    largest_radius,
    median_interval,
    order_statistic_ranks,
    randomised_ranks,
    smallest_num_samples,
    validate_request,
)
from certiqa.certification.request import CertificationRequest, Stopping
from certiqa.certification.sampler import Certificates, certify, certify_each, require_certifiable
from certiqa.certification.sequential import look_sizes, sequential_ranks
from certiqa.certification.worst_case import Worst, worst_krocc, worst_plcc, worst_srocc

__all__ = [
    "Certificates",
    "CertificationRequest",
    "ImageCertificate",
    "Stopping",
    "Worst",
    "certified_interval",
    "certified_krocc",
    "certified_mse",
    "certified_plcc",
    "certified_srocc",
    "certify",
    "certify_each",
    "joint_confidence_per_side",
    "largest_radius",
    "look_sizes",
    "median_interval",
    "order_statistic_ranks",
    "randomised_ranks",
    "require_certifiable",
    "sequential_ranks",
    "smallest_num_samples",
    "validate_request",
    "worst_krocc",
    "worst_plcc",
    "worst_srocc",
]
