"""A small model that recites, edited and measured: the whole workflow in minutes on a CPU."""
