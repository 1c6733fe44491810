//! Named scenarios and the soak: a world, loads, faults, and what every checker says afterwards.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use chaos_tests::{faults::Fault, scenario::Stage};
//! use std::time::Duration;
//! let mut stage = Stage::of(&["par-1", "fra-1", "lis-1"])?;
//! stage.begin(7)?;
//! let side = vec!["lis-1".to_owned()];
//! stage.during(&Fault::Partition { side }, Duration::from_secs(15))?;
//! println!("{}", stage.end()?);
//! # Ok(())
//! # }
//! ```

mod excuse;
pub mod soak;
mod stage;

pub use excuse::{Excuses, Outage};
pub use stage::{Report, Stage};
