"""A method is a value that names its parts; here they are found, bound, tried and guarded."""
