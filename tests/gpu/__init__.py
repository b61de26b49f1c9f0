"""What only a GPU shows: `make test-gpu`. The same code runs tiny on a CPU, for its report."""
