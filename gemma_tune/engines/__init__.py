"""What computes answers and log-probabilities: Transformers, llama.cpp."""
