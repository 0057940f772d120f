"""The llamacpp backend: one GGUF file per variant, for llama.cpp and all that builds on it."""
