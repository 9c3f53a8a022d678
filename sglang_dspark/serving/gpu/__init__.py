"""What runs on a CUDA device only: our kernels in SGLang's worker, ragged verification on FlashInfer."""
