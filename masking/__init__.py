"""What is hidden from the model, and how masked tokens are treated. Imports torch and einops only."""
