"""A numpy evaluator of saved CoreML packages, for machines that are no Macs. It knows nothing of the converter."""
