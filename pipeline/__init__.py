"""What a person touches: commands, options, the plan of a run, and how it is launched."""
