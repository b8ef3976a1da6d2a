"""Pure tensor functions of the method: no model, no config, no I/O."""
