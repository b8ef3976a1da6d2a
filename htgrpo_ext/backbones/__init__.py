"""One file per model: prompts to rows, canonical image codes to logits and pixels."""
