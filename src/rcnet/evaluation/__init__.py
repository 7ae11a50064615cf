"""PSNR, SSIM and error rate of a network at each step count."""

from rcnet.evaluation.adaptive import adaptive_results
from rcnet.evaluation.classify import classification_results
from rcnet.evaluation.denoise import denoising_results, denoising_scores, pair_results, psnr, ssim
from rcnet.evaluation.recalibrate import recalibrate

__all__ = [
    "adaptive_results",
    "classification_results",
    "denoising_results",
    "denoising_scores",
    "pair_results",
    "psnr",
    "recalibrate",
    "ssim",
]
