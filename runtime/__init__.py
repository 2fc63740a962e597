"""Everything at inspection time: engines, solvers, methods, geometry, decision."""
