//! Networks by name: what the link between any two ports is when a world begins, and after a reset.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Link;

/// The region whose hosts are mobile in [`Preset::Mobile`].
const MOBILE: &str = "mob";

/// A region is a name up to its dash. A port without a dash, such as the registry of images or the
/// test itself, lies in no region and is near to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// One rack: no delay, no loss.
    Lan,
    /// One city: 1 ms each way between any two hosts.
    Metro,
    /// A metro in each region, and 20 ms each way between two of them.
    Regions,
    /// A metro; hosts of the region `mob` hang on a bad mobile uplink.
    Mobile,
}

impl Preset {
    /// The link from one port to another, by their names.
    pub fn link(self, from: &str, to: &str) -> Link {
        let (Some(from), Some(to)) = (region(from), region(to)) else {
            return Link::default();
        };
        match self {
            Self::Lan => Link::default(),
            Self::Regions if from != to => far(),
            Self::Mobile if from == MOBILE => mobile_up(),
            Self::Mobile if to == MOBILE => mobile_down(),
            Self::Metro | Self::Regions | Self::Mobile => metro(),
        }
    }
}

fn region(name: &str) -> Option<&str> {
    name.split_once('-').map(|(region, _)| region)
}

fn metro() -> Link {
    Link {
        delay: 1.0,
        jitter: 0.2,
        ..Link::default()
    }
}

fn far() -> Link {
    Link {
        delay: 20.0,
        jitter: 0.5,
        ..Link::default()
    }
}

/// From a mobile host: narrow, lossy and unsteady.
pub fn mobile_up() -> Link {
    Link {
        delay: 45.0,
        jitter: 25.0,
        loss: 0.03,
        rate: Some(2_000_000),
        ..Link::default()
    }
}

/// To a mobile host: the better way, with a deep queue as masts have.
pub fn mobile_down() -> Link {
    Link {
        delay: 35.0,
        jitter: 10.0,
        loss: 0.01,
        rate: Some(8_000_000),
        queue: 512 << 10,
        ..Link::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_know_regions_by_the_names() {
        let delay = |preset: Preset, from, to| preset.link(from, to).delay;
        assert_eq!(Preset::Lan.link("par-1", "fra-1"), Link::default());
        for (preset, from, to, expected) in [
            (Preset::Metro, "par-1", "fra-1", 1.0),
            (Preset::Regions, "par-1", "par-2", 1.0),
            (Preset::Regions, "par-1", "fra-1", 20.0),
            (Preset::Regions, "par-1", "registry", 0.0),
            (Preset::Mobile, "par-1", "fra-1", 1.0),
        ] {
            let (there, back) = (delay(preset, from, to), delay(preset, to, from));
            assert!((there - expected).abs() < f64::EPSILON, "{from} {to}");
            assert!((back - expected).abs() < f64::EPSILON, "{to} {from}");
        }
        let (up, down) = (
            Preset::Mobile.link("mob-1", "par-1"),
            Preset::Mobile.link("par-1", "mob-1"),
        );
        assert!(
            up.loss > down.loss && up.rate < down.rate,
            "one way is worse"
        );
    }
}
