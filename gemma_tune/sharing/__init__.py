"""`recipe=push`: what a run has made, as repositories on the Hugging Face Hub."""
