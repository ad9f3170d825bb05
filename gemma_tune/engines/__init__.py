"""What computes answers and log-probabilities: Transformers, llama.cpp, vLLM, a served API."""
