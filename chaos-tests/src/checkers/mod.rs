//! What must hold after a run: each reads books and histories and says what contradicts what.

pub mod accounting;
pub mod convergence;
pub mod deploys;
pub mod images;
pub mod leaks;
pub mod linear;
pub mod oracle;
#[cfg(test)]
mod testing;
pub mod watch;
