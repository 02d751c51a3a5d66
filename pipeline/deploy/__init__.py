"""What is done with a finished student: predict, serve, export, and GLUE's submission."""
