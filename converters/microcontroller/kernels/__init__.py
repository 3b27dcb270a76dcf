"""The C kernels of integer operators: portable, Cortex-M with DSP (SMLAD), Cortex-M55 (MVE)."""
