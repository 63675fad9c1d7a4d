"""What the commands do for N-body initial conditions."""
