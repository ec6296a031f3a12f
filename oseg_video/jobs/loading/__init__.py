"""From the name of a model to a pipeline that is ready to run."""
