"""What a build of 10^9 photographs would take: a simulation, what it is checked by, and sums."""
