//! The catalogue of faults by their names: each is injected, seen to hold, and healed.
