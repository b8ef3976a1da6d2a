"""What a user asks for, as whole pieces of work: train, compare, plan, sample."""
