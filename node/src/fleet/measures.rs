//! What this node measures of the network and of itself, brought up to date once a second and told to the
//! others. Where the numbers come from is here; what follows from them is the cores'.

use std::collections::BTreeMap;
use std::sync::Arc;

use netfabric::gossip::Heard;
use netfabric::transport::RoundTrip;
use scheduler::coordinates::Vivaldi;
use scheduler::fleet::text_hash;
use scheduler::model::{MOST_IMAGES, Measured, NodeId, Pressure, Pulls};

use super::pressure;
use crate::agent::Experience;

/// What there is to see at a moment.
pub(super) struct Sight<'a> {
    pub trips: &'a [RoundTrip],
    pub heard: &'a BTreeMap<NodeId, Heard>,
    pub pressure: Option<Pressure>,
    pub experience: &'a Experience,
    /// The digests of images held here, and their unpacked sizes.
    pub images: Vec<(String, u64)>,
}

pub(super) struct Measures {
    me: NodeId,
    vivaldi: Vivaldi,
    /// What had come on each connection when its round trip was last counted.
    counted: BTreeMap<NodeId, u64>,
    told: Arc<Measured>,
}

impl Measures {
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            vivaldi: Vivaldi::new(me),
            counted: BTreeMap::new(),
            told: Arc::default(),
        }
    }

    /// Measures anew; says whether there is something new to tell.
    pub fn look(&mut self, sight: &Sight<'_>) -> bool {
        self.place(sight.trips, sight.heard);
        let measured = Measured {
            coordinate: Some(self.vivaldi.tell()),
            pressure: pressure::tell(self.told.pressure, sight.pressure),
            starts: sight.experience.starts.clone(),
            pulls: Pulls {
                kib_per_second: sight.experience.kib_per_second,
                images: sizes(&sight.images),
            },
        };
        let news = measured != *self.told;
        if news {
            self.told = measured.into();
        }
        news
    }

    pub fn told(&self) -> &Arc<Measured> {
        &self.told
    }

    /// A connection nothing came on has measured nothing new.
    fn place(&mut self, trips: &[RoundTrip], heard: &BTreeMap<NodeId, Heard>) {
        let connected: BTreeMap<NodeId, u64> = trips.iter().map(|t| (t.node, t.received)).collect();
        let fresh = trips.iter().filter(|trip| {
            trip.node != self.me && self.counted.get(&trip.node) != Some(&trip.received)
        });
        for trip in fresh {
            let peer = heard.get(&trip.node);
            let peer = peer.and_then(|heard| heard.measured.coordinate.as_ref());
            if let (Some(peer), Ok(rtt)) = (peer, u32::try_from(trip.rtt.as_micros())) {
                self.vivaldi.on_round_trip(rtt, peer);
            }
        }
        self.counted = connected;
    }
}

fn sizes(images: &[(String, u64)]) -> Vec<(u64, u32)> {
    let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
    let told = images.iter().take(MOST_IMAGES);
    let mut sizes: Vec<_> = told
        .map(|(digest, bytes)| (text_hash(digest), kib(*bytes)))
        .collect();
    sizes.sort_unstable();
    sizes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netfabric::gossip::Life;
    use scheduler::model::Coordinate;

    use super::super::tests::member;
    use super::*;

    fn heard(id: u64, at: i32) -> (NodeId, Heard) {
        let coordinate = Coordinate {
            at: [at, 0, 0, 0],
            height: 200,
            error_permille: 30,
        };
        let heard = Heard {
            record: member(id, 0).record,
            measured: Arc::new(Measured {
                coordinate: Some(coordinate),
                ..Measured::default()
            }),
            life: Life {
                alive: true,
                ..Life::default()
            },
        };
        (NodeId(id), heard)
    }

    fn look(measures: &mut Measures, trips: &[RoundTrip], heard: &BTreeMap<NodeId, Heard>) -> bool {
        measures.look(&Sight {
            trips,
            heard,
            pressure: None,
            experience: &Experience::default(),
            images: vec![("sha256:aa".to_owned(), 5 << 20)],
        })
    }

    fn trip(node: u64, millis: u64, received: u64) -> RoundTrip {
        RoundTrip {
            node: NodeId(node),
            rtt: Duration::from_millis(millis),
            received,
        }
    }

    #[test]
    fn a_new_node_tells_its_place_after_a_few_looks() {
        // A region at hand, and one 40 ms away.
        let heard = BTreeMap::from([heard(2, 0), heard(3, 500), heard(4, 40_000)]);
        let mut measures = Measures::new(NodeId(1));
        assert!(look(&mut measures, &[], &heard), "it tells that it is lost");
        assert!(!measures.told().coordinate.unwrap().is_trusted());
        let image = (text_hash("sha256:aa"), 5 << 10);
        assert_eq!(measures.told().pulls.images, [image]);
        for second in 0..5 {
            let trips = [(2, 1), (3, 1), (4, 41)].map(|(node, ms)| trip(node, ms, second));
            look(&mut measures, &trips, &heard);
        }
        let own = measures.told().coordinate.unwrap();
        let to = |node| {
            let there = heard[&NodeId(node)].measured.coordinate.unwrap();
            own.round_trip_to(&there).unwrap()
        };
        assert!(to(2) < 12_000 && to(3) < 12_000, "{} {}", to(2), to(3));
        assert!((30_000..52_000).contains(&to(4)), "{}", to(4));
    }

    #[test]
    fn a_connection_that_rests_measures_nothing() {
        let heard = BTreeMap::from([heard(2, 40_000)]);
        let mut measures = Measures::new(NodeId(1));
        look(&mut measures, &[trip(2, 5, 9)], &heard);
        let before = measures.vivaldi.clone();
        look(&mut measures, &[trip(2, 5, 9)], &heard);
        assert_eq!(measures.vivaldi, before);
        look(&mut measures, &[trip(2, 5, 10)], &heard);
        assert_ne!(measures.vivaldi, before);
        // Itself it need not meet.
        let before = measures.vivaldi.clone();
        look(&mut measures, &[trip(1, 1, 1)], &heard);
        assert_eq!(measures.vivaldi, before);
    }
}
