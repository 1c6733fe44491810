//! What must hold after a run: each reads books and histories and says what contradicts what.

pub mod deploys;
pub mod linear;
pub mod oracle;
#[cfg(test)]
mod testing;
pub mod watch;
