"""The bridge to MaskGRPO: its trainer under our configuration, and the patches that it needs."""
