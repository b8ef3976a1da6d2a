"""What a person does with the project: train and see the result, compare methods."""
