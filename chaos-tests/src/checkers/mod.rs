//! What must hold after a run: each reads books and histories and says what contradicts what.

pub mod accounting;
pub mod convergence;
pub mod leaks;
