"""Where data comes from and goes to: sources, options, the batch pipeline and the command line."""
