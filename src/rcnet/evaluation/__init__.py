"""PSNR, SSIM and error rate of a network at each step count."""

from rcnet.evaluation.denoise import denoising_results, psnr, ssim

__all__ = ["denoising_results", "psnr", "ssim"]
