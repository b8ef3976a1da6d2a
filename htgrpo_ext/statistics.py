"""Bootstrap intervals over prompts."""
