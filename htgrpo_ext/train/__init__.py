"""The loops that train a backbone."""
