//! Named scenarios and the soak: a world, a load, faults, and the checks afterwards.
