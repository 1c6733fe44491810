//! Selvedge beside its peer and the floor, measured in one run.
