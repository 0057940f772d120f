"""OpenVINO IR with tokenizers, for Intel CPUs, GPUs and NPUs."""
