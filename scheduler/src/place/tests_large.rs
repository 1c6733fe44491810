//! Large fleets: what the search finds is what looking at every node finds, and the index that is
//! kept by changes is the one that is made anew.

use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{DIGEST, member, name, put_instance, revision};
use super::*;
use crate::fleet::{Index, Indexed, Member};
use crate::model::{Coordinate, Fit, Preference, Pressure, Spread, StartHistogram, StartTime};

const REGIONS: [&str; 4] = ["eu-west", "eu-north", "us-east", "as-1"];

prop_compose! {
    fn any_node(id: u64)(
        region in 0_usize..4,
        zone in 0_usize..3,
        rtt in prop::option::weighted(0.8, 0_u32..200_000),
        (alive, serving, cordoned) in (
            prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.1)
        ),
        image in prop::bool::weighted(0.3),
        fast in prop::bool::weighted(0.5),
        cpu in 0_u32..2_000,
        instances in 0_usize..3,
        strain in 0_u16..400,
        took in prop::collection::vec(20_000_u64..2_000_000, 0..6),
        rate in prop::option::weighted(0.5, 1_000_u32..200_000),
        at in prop::option::weighted(0.7, prop::array::uniform4(-60_000_i32..60_000)),
    ) -> Member {
        let mut member = member(id, REGIONS[region], rtt);
        member.record.edit().zone = name(&format!("z{zone}"));
        member.alive = alive;
        member.record.edit().serving = serving;
        member.record.edit().cordoned = cordoned;
        member.record.edit().free.cpu_millis = cpu;
        Arc::make_mut(&mut member.measured).coordinate = at.map(|at| Coordinate {
            at,
            height: cpu,
            error_permille: u16::try_from(cpu % 600).unwrap(),
        });
        Arc::make_mut(&mut member.measured).pressure = Some(Pressure {
            io_permille: strain,
            ..Pressure::default()
        });
        let mut starts = StartHistogram::new(revision().key);
        for micros in took {
            starts.note(micros);
        }
        Arc::make_mut(&mut member.measured).starts.push(starts);
        Arc::make_mut(&mut member.measured).pulls.kib_per_second = rate;
        if image && id.is_multiple_of(2) {
            let size = (crate::fleet::text_hash(DIGEST), 400_000);
            Arc::make_mut(&mut member.measured).pulls.images.push(size);
        }
        let disk = if fast { "nvme" } else { "hdd" };
        member.record.edit().labels.insert("disk".to_owned(), disk.to_owned());
        if !id.is_multiple_of(3) {
            let figure = (cpu % 1_000).to_string();
            member.record.edit().labels.insert(ENERGY_LABEL.to_owned(), figure);
        }
        member.record.edit().images = vec![format!("sha256:{}", id % 7)];
        if image {
            member.record.edit().images.push(DIGEST.to_owned());
        }
        if fast {
            member.record.edit().starts.push(StartTime {
                revision: revision().key,
                micros: 50_000 + 10 * cpu,
            });
        }
        for _ in 0..instances.saturating_sub(1) {
            put_instance(&mut member.record.edit(), &revision());
        }
        member
    }
}

fn any_fleet() -> impl Strategy<Value = Fleet> {
    let nodes = (40_u64..160).prop_flat_map(|n| (1..=n).map(any_node).collect::<Vec<_>>());
    nodes.prop_map(|nodes| {
        let mut fleet = Fleet {
            me: NodeId(1),
            members: nodes.into_iter().map(|m| (m.record.node, m)).collect(),
            ..Fleet::default()
        };
        let me = fleet.members.get_mut(&NodeId(1)).unwrap();
        (me.alive, me.rtt_micros) = (true, Some(0));
        fleet.reckoned()
    })
}

fn any_rules() -> impl Strategy<Value = Revision> {
    let spread = prop_oneof![Just(Spread::None), Just(Spread::Zone), Just(Spread::Region)];
    let wishes = (any::<bool>(), 0_u32..3, -2_i32..3);
    (spread, 0..3, any::<bool>(), wishes).prop_map(|(spread, regions, nvme, wishes)| {
        let mut revision = revision();
        let (pack, energy, weight) = wishes;
        revision.spec.place.fit = if pack { Fit::Pack } else { Fit::Spread };
        revision.spec.place.energy = energy * 30;
        if weight != 0 {
            revision.spec.place.prefer.push(Preference {
                label: "disk".to_owned(),
                value: "hdd".to_owned(),
                weight: weight * 3,
            });
        }
        revision.spec.place.spread = spread;
        revision.spec.place.regions = match regions {
            0 => Vec::new(),
            1 => vec!["eu-*".to_owned()],
            _ => vec!["us-east".to_owned()],
        };
        if nvme {
            let rule = ("disk".to_owned(), "nvme".to_owned());
            revision.spec.place.require.extend([rule]);
        }
        revision
    })
}

fn asked(from: u64) -> Ask {
    Ask {
        from: NodeId(from),
        ..Ask::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_search_finds_the_best(fleet in any_fleet(), revision in any_rules(), from in 1_u64..9) {
        let all = place(&fleet, &revision, &asked(from));
        let found = place(&fleet.clone().indexed(), &revision, &asked(from));
        let best = |receipt: &Receipt| receipt.ranked().next().map(|(n, c)| (n, c.clone()));
        let (all_best, best) = (best(&all), best(&found));
        prop_assert_eq!(all_best.is_some(), best.is_some());
        if let Some(((_, all), (_, own))) = all_best.zip(best) {
            prop_assert_eq!(own.cost_micros, own.parts.sum());
            prop_assert_eq!(found.passed.regret_micros, 0, "nothing was left out");
            prop_assert_eq!(own.cost_micros, all.cost_micros);
            let passed = found.passed;
            let told = u32::try_from(found.verdicts.len()).unwrap();
            prop_assert!(told + passed.closed + passed.refused + passed.unseen >= told);
        }
        for (node, _) in found.ranked() {
            let verdict = all.verdicts.iter().find(|v| v.node == node).unwrap();
            prop_assert!(verdict.outcome.is_ok(), "{} is refused: {:?}", node, verdict);
        }
    }

    #[test]
    fn an_index_kept_by_changes_is_one_made_anew(
        before in any_fleet(),
        after in any_fleet(),
        revision in any_rules(),
    ) {
        let mut index = Index::of(&before);
        for member in after.members.values() {
            index.set(member);
        }
        for gone in before.members.keys().filter(|n| !after.members.contains_key(n)) {
            index.remove(*gone);
        }
        let kept = Fleet { index: Indexed(Some(Arc::new(index))), ..after.clone() };
        let verdicts = |fleet: &Fleet| {
            let receipt = place(fleet, &revision, &asked(1));
            (receipt.ranked().map(|(_, c)| c.clone()).collect::<Vec<_>>(), receipt.passed)
        };
        prop_assert_eq!(verdicts(&kept), verdicts(&after.indexed()));
    }
}

#[test]
fn filling_nodes_up_looks_at_few_of_them() {
    // Of thousands alike, in all states of fullness; some smaller than others.
    for (image, small) in [(true, false), (false, false), (true, true)] {
        let nodes = (1..=4_000_u64).map(|id| {
            let mut member = member(id, "eu-west", Some(1_000));
            let mut record = member.record.edit();
            if !image {
                record.images.clear();
            }
            if small && id.is_multiple_of(5) {
                record.capacity.cpu_millis /= 2;
                record.free.cpu_millis /= 2;
            }
            let used = u32::try_from(id * 7 % 1_000).unwrap();
            record.free.cpu_millis -= record.capacity.cpu_millis * used / 1_000;
            drop(record);
            (NodeId(id), member)
        });
        let fleet = Fleet {
            me: NodeId(1),
            members: nodes.collect(),
            ..Fleet::default()
        };
        let mut revision = revision();
        revision.spec.place.fit = Fit::Pack;
        let all = place(&fleet, &revision, &asked(1));
        let fleet = fleet.indexed();
        let found = place(&fleet, &revision, &asked(1));
        let cost = |receipt: &Receipt| receipt.ranked().next().unwrap().1.cost_micros;
        let looked = found.inputs.nodes - found.passed.closed - found.passed.unseen;
        assert!(looked <= 400, "{looked} of {}", found.inputs.nodes);
        assert_eq!(cost(&found), cost(&all));
        assert_eq!(found.passed.regret_micros, 0, "{:?}", found.passed);

        // Beside what was promised too, which the order of the nodes does not know of.
        let mut promised = Promised::default();
        for node in [500, 900, 901] {
            promised.add(NodeId(node), &revision.key, &needs(&revision.spec));
        }
        let found = place_beside(&fleet, &revision, &asked(1), &promised);
        let all = judge_all(&fleet, &revision, &asked(1), &promised);
        assert_eq!(cost(&found), cost(&all));
        let nodes: BTreeSet<NodeId> = found.ranked().map(|(node, _)| node).collect();
        assert_eq!(nodes.len(), found.ranked().count(), "none twice");
    }
}

#[test]
fn promises_count_before_any_record_shows_them() {
    let nodes = (1..=40).map(|id| (NodeId(id), member(id, "eu-west", Some(0))));
    let fleet = Fleet {
        me: NodeId(1),
        members: nodes.collect(),
        ..Fleet::default()
    };
    let revision = revision();
    for fleet in [fleet.clone(), fleet.indexed()] {
        let mut promised = Promised::default();
        let mut taken = BTreeSet::new();
        for _ in 0..40 {
            let receipt = place_beside(&fleet, &revision, &asked(1), &promised);
            let (node, _) = receipt.ranked().next().unwrap();
            promised.add(node, &revision.key, &needs(&revision.spec));
            taken.insert(node);
        }
        assert_eq!(taken.len(), 40, "one on each node before two on any");
    }
}

#[test]
fn a_walk_that_is_cut_short_says_by_how_much_it_may_be_wrong() {
    // Nodes that all refuse for lack of instances are looked at in vain; the walk ends before the
    // emptiest of the far ones.
    let far = u64::from(MOST_LOOKED) + 200;
    let nodes = (1..=far).map(|id| {
        let near = id < u64::from(MOST_LOOKED) - 4;
        let mut member = member(id, "eu-west", Some(if near { 1_000 } else { 10_000 }));
        if near {
            member.record.edit().free.instances = 0;
        }
        member.record.edit().free.cpu_millis = 2_000 - u32::try_from(id % 16).unwrap();
        (NodeId(id), member)
    });
    let fleet = Fleet {
        me: NodeId(1),
        members: nodes.collect(),
        ..Fleet::default()
    };
    let all = place(&fleet, &revision(), &asked(1));
    let found = place(&fleet.indexed(), &revision(), &asked(1));
    let cost = |receipt: &Receipt| receipt.ranked().next().unwrap().1.cost_micros;
    assert!(found.passed.unseen > 0 && found.passed.refused > 400);
    assert!(cost(&found) <= cost(&all) + found.passed.regret_micros);
    assert!(
        found.passed.regret_micros * 20 <= cost(&found),
        "{:?}",
        found.passed
    );
}
