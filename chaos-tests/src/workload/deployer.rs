//! Deployers: operators who deploy, scale and delete a few services all the time. The load is the
//! registry's with other operations; the serial of a value is the upper bound of the scale, so that
//! scaling is a write like a deploy. What must come of it is `checkers::deploys`' business.

use super::api::{Door, Mark};
use super::history::Op;
use super::registry::{self, Kind, Load, Plan};

/// The registry takes no higher upper bound of a scale.
const HIGHEST_SCALE: u64 = 1000;

const DEPLOYS: Kind = Kind {
    mix: &[(Op::Put, 40), (Op::Scale, 35), (Op::Get, 15), (Op::Del, 10)],
    mark: Mark::ScaleMax,
    prefix: "app",
    serials: HIGHEST_SCALE,
};

/// Starts deployers on these nodes. They end early once they have used up their thousand serials.
pub fn start(plan: Plan, doors: Vec<Door>) -> Load {
    registry::start_kind(plan, doors, DEPLOYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_percents() {
        assert_eq!(DEPLOYS.mix.iter().map(|(_, share)| share).sum::<u32>(), 100);
    }
}
