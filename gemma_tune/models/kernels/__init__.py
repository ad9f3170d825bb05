"""What makes a pass of training fast without other results: attention, batches without padding, norms, LoRA, the head.

Attention begins in document_attention.py: documents.py finds the documents of a batch, attention_plan.py says which
blocks are computed, block_attention.py computes them and their gradients. compact_batch.py makes the batch,
label_positions.py leaves positions out, tiled_head.py computes log-probabilities. switch.py turns all of it off for
evaluations between steps. docs/speed.md has what each saves, and its key.
"""
