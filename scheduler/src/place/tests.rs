//! Fleets, asks and the rankings that come of them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fleet::{Edit, Member};
use crate::model::{
    Container, Demand, Fit, ImagePin, InstanceId, InstanceReport, LocalVolume, Name, NodeRecord,
    ObjectKey, Preference, Pressure, RevisionKey, RevisionState, ServiceKey, Spread,
    StartHistogram, StartTime, UnixMs, Volume, VolumeSource,
};

pub(super) const DIGEST: &str = "sha256:aa";

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn revision() -> Revision {
    let service = ServiceKey {
        namespace: Name::default_namespace(),
        name: name("web"),
    };
    Revision {
        key: RevisionKey::of(&service, 1).unwrap(),
        service,
        generation: 1,
        created: UnixMs(0),
        spec: RevisionSpec {
            containers: vec![Container::default()],
            ..RevisionSpec::default()
        },
        image: ImagePin {
            reference: "r/web:1".to_owned(),
            digest: DIGEST.to_owned(),
        },
        state: RevisionState::Pending,
    }
}

pub(super) fn member(id: u64, region: &str, rtt_micros: Option<u32>) -> Member {
    let capacity = Resources {
        cpu_millis: 2000,
        memory_bytes: 2 << 30,
        instances: 100,
    };
    let record = NodeRecord {
        node: NodeId(id),
        name: name(&format!("node-{id}")),
        region: name(region),
        zone: name(&format!("{region}-a")),
        labels: BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: "0.1.0".to_owned(),
        mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 8422)),
        ingress: Vec::new(),
        serving: true,
        cordoned: false,
        capacity,
        free: capacity,
        registry_index: 1,
        instances: Vec::new(),
        demand: Vec::new(),
        starts: Vec::new(),
        images: vec![DIGEST.to_owned()],
    };
    Member::new(record, true, rtt_micros)
}

fn fleet() -> Fleet {
    let members = [
        member(1, "eu-west", Some(0)),
        member(2, "eu-north", Some(9_000)),
        member(3, "us-east", Some(80_000)),
    ];
    Fleet {
        me: NodeId(1),
        members: members.into_iter().map(|m| (m.record.node, m)).collect(),
        ..Fleet::default()
    }
}

fn record(fleet: &mut Fleet, id: u64) -> Edit<'_> {
    fleet.members.get_mut(&NodeId(id)).unwrap().record.edit()
}

pub(super) fn put_instance(record: &mut NodeRecord, revision: &Revision) {
    let (id, number) = (record.node, record.instances.len());
    record.instances.push(InstanceReport {
        id: InstanceId(format!("{}-{id}-{number}", revision.key.name)),
        service: revision.service.clone(),
        revision: revision.key.clone(),
        state: crate::model::InstanceState::Ready,
        since: UnixMs(0),
        in_flight: 0,
        concurrency_milli: 0,
        failure: None,
        steward: None,
        activity: crate::model::Activity::default(),
    });
}

#[test]
fn a_start_is_expected_by_what_starts_took_and_by_how_many_there_were() {
    let mut fleet = fleet();
    let mut took = |node: u64, micros: u64, times: u32| {
        let mut starts = StartHistogram::new(revision().key);
        (0..times).for_each(|_| starts.note(micros));
        let member = fleet.members.get_mut(&NodeId(node)).unwrap();
        Arc::make_mut(&mut member.measured).starts = vec![starts];
    };
    took(1, 1_000_000, 1);
    took(2, 60_000, 30);
    for fleet in [fleet.clone(), fleet.clone().indexed()] {
        let receipt = place(&fleet, &revision(), &ask());
        let start = |node: u64| {
            let found = receipt.ranked().find(|(n, _)| n.0 == node);
            found.unwrap().1.parts.start
        };
        let usual = start(3);
        assert!((450_000..650_000).contains(&usual), "{usual}");
        assert!(
            (usual..850_000).contains(&start(1)),
            "one slow start: {}",
            start(1)
        );
        assert!((50_000..110_000).contains(&start(2)), "{}", start(2));
        assert_eq!(ranking(&receipt)[0], 2);
    }
}

#[test]
fn a_strained_node_is_shunned_and_the_receipt_says_so() {
    let mut fleet = fleet();
    assert_eq!(ranked(&fleet, &revision(), &ask())[0], 1);
    let strained = fleet.members.get_mut(&NodeId(1)).unwrap();
    Arc::make_mut(&mut strained.measured).pressure = Some(Pressure {
        memory_permille: 400,
        ..Pressure::default()
    });
    for fleet in [fleet.clone(), fleet.indexed()] {
        let receipt = place(&fleet, &revision(), &ask());
        assert_eq!(ranking(&receipt), [2, 3, 1]);
        let (_, last) = receipt.ranked().last().unwrap();
        assert_eq!(last.parts.pressure, 400 * PRESSED_MICROS / 1_000);
    }
}

#[test]
fn a_pull_takes_what_the_image_is_over_what_the_node_brings() {
    let mut fleet = fleet();
    let image = crate::fleet::text_hash(DIGEST);
    for (node, rate) in [(1, Some(10_000)), (2, Some(200_000)), (3, None)] {
        let member = fleet.members.get_mut(&NodeId(node)).unwrap();
        Arc::make_mut(&mut member.measured).pulls.kib_per_second = rate;
        if node == 3 {
            Arc::make_mut(&mut member.measured).pulls.images = vec![(image, 100_000)];
        } else {
            member.record.edit().images.clear();
        }
    }
    for fleet in [fleet.clone(), fleet.clone().indexed()] {
        let receipt = place(&fleet, &revision(), &ask());
        let pull = |node: u64| {
            let found = receipt.ranked().find(|(n, _)| n.0 == node);
            found.unwrap().1.parts.pull
        };
        assert_eq!((pull(1), pull(2), pull(3)), (10_000_000, 500_000, 0));
    }
    // Whose size nobody tells is one like others.
    let holder = fleet.members.get_mut(&NodeId(3)).unwrap();
    Arc::make_mut(&mut holder.measured).pulls.images.clear();
    let receipt = place(&fleet, &revision(), &ask());
    let last = receipt.ranked().last().unwrap().1;
    assert_eq!(last.parts.pull, PULL_MICROS);
}

fn ask() -> Ask {
    Ask {
        from: NodeId(1),
        avoid: BTreeSet::new(),
        region: None,
        cause: "request".to_owned(),
        why: String::new(),
    }
}

fn ranking(receipt: &Receipt) -> Vec<u64> {
    receipt.ranked().map(|(node, _)| node.0).collect()
}

fn ranked(fleet: &Fleet, revision: &Revision, ask: &Ask) -> Vec<u64> {
    ranking(&place(fleet, revision, ask))
}

#[test]
fn the_nearest_node_that_holds_the_image_comes_first() {
    let mut fleet = fleet();
    assert_eq!(ranked(&fleet, &revision(), &ask()), [1, 2, 3]);
    record(&mut fleet, 1).images.clear();
    assert_eq!(ranked(&fleet, &revision(), &ask()), [2, 3, 1]);
    fleet.members.get_mut(&NodeId(2)).unwrap().rtt_micros = None;
    assert_eq!(
        ranked(&fleet, &revision(), &ask()),
        [3, 2, 1],
        "unmeasured is far"
    );
}

#[test]
fn another_asker_is_judged_by_names() {
    let mut fleet = fleet();
    record(&mut fleet, 3).region = name("eu-north");
    let far = Ask {
        from: NodeId(2),
        ..ask()
    };
    assert_eq!(ranked(&fleet, &revision(), &far), [2, 3, 1]);
}

#[test]
fn every_node_gets_its_reason() {
    type Spoil = fn(&mut Member);
    let table: &[(&str, Spoil)] = &[
        ("not reachable", |m| m.alive = false),
        ("not reachable", |m| m.lost = true),
        ("leaving", |m| m.record.edit().serving = false),
        ("cordoned", |m| m.record.edit().cordoned = true),
        ("region as-1 is not among eu-*, us-east", |m| {
            m.record.edit().region = name("as-1");
        }),
        ("label disk is hdd, not nvme", |m| {
            m.record
                .edit()
                .labels
                .insert("disk".to_owned(), "hdd".to_owned());
        }),
        ("label disk is unset, not nvme", |m| {
            m.record.edit().labels.clear();
        }),
        ("needs 500 mCPU, 499 free", |m| {
            m.record.edit().free.cpu_millis = 499;
        }),
        ("needs 67108864 bytes of memory, 5 free", |m| {
            m.record.edit().free.memory_bytes = 5;
        }),
        ("has as many instances as it may", |m| {
            m.record.edit().free.instances = 0;
        }),
    ];
    let mut revision = revision();
    revision.spec.containers[0].cpu_millis = 500;
    revision.spec.place.regions = vec!["eu-*".to_owned(), "us-east".to_owned()];
    revision
        .spec
        .place
        .require
        .insert("disk".to_owned(), "nvme".to_owned());
    for (reason, spoil) in table {
        let mut fleet = fleet();
        for member in fleet.members.values_mut() {
            member
                .record
                .edit()
                .labels
                .insert("disk".to_owned(), "nvme".to_owned());
        }
        assert_eq!(ranked(&fleet, &revision, &ask()), [1, 2, 3]);
        spoil(fleet.members.get_mut(&NodeId(2)).unwrap());
        let receipt = place(&fleet, &revision, &ask());
        assert_eq!(ranking(&receipt), [1, 3]);
        assert_eq!(receipt.refusals(), [format!("node-2: {reason}")]);
    }
    let avoiding = Ask {
        avoid: BTreeSet::from([NodeId(1)]),
        ..ask()
    };
    let mut fleet = fleet();
    for member in fleet.members.values_mut() {
        member
            .record
            .edit()
            .labels
            .insert("disk".to_owned(), "nvme".to_owned());
    }
    let receipt = place(&fleet, &revision, &avoiding);
    assert_eq!(receipt.refusals(), ["node-1: refused a moment ago"]);
}

#[test]
fn equals_are_told_apart_by_load_then_by_number() {
    let mut fleet = fleet();
    for id in [2, 3] {
        fleet.members.get_mut(&NodeId(id)).unwrap().rtt_micros = Some(0);
    }
    assert_eq!(ranked(&fleet, &revision(), &ask()), [1, 2, 3]);
    record(&mut fleet, 1).free.memory_bytes = 1 << 30;
    assert_eq!(
        ranked(&fleet, &revision(), &ask()),
        [2, 3, 1],
        "the crowded one last"
    );
    put_instance(&mut record(&mut fleet, 2), &revision());
    assert_eq!(
        ranked(&fleet, &revision(), &ask())[0],
        3,
        "not beside its like"
    );
}

#[test]
fn spreading_outweighs_distance_and_pulls() {
    let mut fleet = fleet();
    let mut revision = revision();
    put_instance(&mut record(&mut fleet, 1), &revision);
    record(&mut fleet, 2).region = name("eu-west");
    record(&mut fleet, 3).images.clear();
    assert_eq!(ranked(&fleet, &revision, &ask())[0], 1);
    revision.spec.place.spread = Spread::Zone;
    assert_eq!(ranked(&fleet, &revision, &ask()), [2, 3, 1]);
    revision.spec.place.spread = Spread::Region;
    assert_eq!(ranked(&fleet, &revision, &ask()), [3, 1, 2]);
}

#[test]
fn what_names_nothing_reserves_a_little() {
    let mut spec = revision().spec;
    let default = needs(&spec);
    assert_eq!(
        (default.cpu_millis, default.memory_bytes, default.instances),
        (DEFAULT_CPU_MILLIS, DEFAULT_MEMORY_BYTES, 1)
    );
    spec.containers[0].cpu_millis = 7;
    spec.containers[0].memory_bytes = 9;
    assert_eq!((needs(&spec).cpu_millis, needs(&spec).memory_bytes), (7, 9));
}

prop_compose! {
    fn any_member()(
        id in 1_u64..9,
        region in prop_oneof![Just("eu-west"), Just("us-east")],
        rtt in prop::option::of(0_u32..300_000),
        (alive, serving, cordoned, image) in any::<(bool, bool, bool, bool)>(),
        cpu in 0_u32..3000,
        memory in 0_u64..3 << 30,
    ) -> Member {
        let mut member = member(id, region, rtt);
        member.alive = alive;
        member.record.edit().serving = serving;
        member.record.edit().cordoned = cordoned;
        member.record.edit().free.cpu_millis = cpu;
        member.record.edit().free.memory_bytes = memory;
        if !image {
            member.record.edit().images.clear();
        }
        member
    }
}

#[test]
fn a_local_volume_keeps_its_users_where_it_is() {
    let mut revision = revision();
    revision.spec.volumes.push(Volume {
        name: "data".to_owned(),
        source: VolumeSource::Local {
            name: "db".to_owned(),
        },
    });
    let mut fleet = fleet();
    let ranked = |fleet: &Fleet| -> Vec<u64> {
        let receipt = place(fleet, &revision, &ask());
        receipt.ranked().map(|(node, _)| node.0).collect()
    };
    assert_eq!(ranked(&fleet).len(), 3, "nobody has it yet");
    let volume = LocalVolume {
        key: ObjectKey {
            namespace: revision.key.namespace.clone(),
            name: Name::new("db").unwrap(),
        },
        node: NodeId(2),
        claimed: 7,
    };
    fleet.volumes.insert(volume.key.clone(), volume);
    assert_eq!(ranked(&fleet), [2]);
    let receipt = place(&fleet, &revision, &ask());
    let name = &fleet.members[&NodeId(2)].record.name;
    let said = format!("its volume `db` is on {name}");
    assert!(receipt.refusals().iter().all(|r| r.ends_with(&said)));
    fleet.members.get_mut(&NodeId(2)).unwrap().alive = false;
    assert_eq!(ranked(&fleet), [0_u64; 0], "never where its data are not");
}

proptest! {
    #[test]
    fn all_get_a_verdict_and_none_that_cannot_is_ranked(
        members in prop::collection::vec(any_member(), 0..9),
        from in 1_u64..9,
    ) {
        let fleet = Fleet {
            me: NodeId(1),
            members: members.into_iter().map(|m| (m.record.node, m)).collect(),
        ..Fleet::default()
        };
        let ask = Ask { from: NodeId(from), ..ask() };
        let receipt = place(&fleet, &revision(), &ask);
        let judged: BTreeSet<_> = receipt.verdicts.iter().map(|v| v.node).collect();
        prop_assert!(judged.iter().eq(fleet.members.keys()));
        prop_assert_eq!(judged.len(), receipt.verdicts.len());
        let mut last = 0;
        for (node, candidate) in receipt.ranked() {
            let member = &fleet.members[&node];
            prop_assert!(member.alive && member.record.serving && !member.record.cordoned);
            prop_assert!(member.record.free.cpu_millis >= DEFAULT_CPU_MILLIS);
            prop_assert!(member.record.free.memory_bytes >= DEFAULT_MEMORY_BYTES);
            prop_assert!(candidate.cost_micros >= last);
            last = candidate.cost_micros;
        }
    }
}

/// Nodes told apart by region, of which those named hold the image.
fn site(regions: &[&str], holders: &[u64]) -> Fleet {
    let members = (1..).zip(regions).map(|(id, region)| {
        let mut member = member(id, region, None);
        if !holders.contains(&id) {
            member.record.edit().images.clear();
        }
        (NodeId(id), member)
    });
    Fleet {
        me: NodeId(1),
        members: members.collect(),
        ..Fleet::default()
    }
}

#[test]
fn images_go_ahead_to_the_likely_next_hosts() {
    let revision = revision();
    let missing = |fleet: &Fleet| -> Vec<u64> {
        let missing = ahead(fleet, &revision);
        missing.into_iter().map(|node| node.0).collect()
    };
    let demand = |fleet: &mut Fleet, id| {
        record(fleet, id).demand.push(Demand {
            revision: revision.key.clone(),
            queued: 1,
            away: 0,
        });
    };
    let mut fleet = site(&["eu", "eu", "eu", "us"], &[2]);
    assert_eq!(missing(&fleet), [1], "beside the one that holds it");
    record(&mut fleet, 1).free.cpu_millis = 900;
    assert_eq!(missing(&fleet), [3], "the emptier one");
    record(&mut fleet, 3).cordoned = true;
    record(&mut fleet, 1).free.cpu_millis = 0;
    assert_eq!(missing(&fleet), [4], "who can take it, however far");

    let mut fleet = site(&["eu", "eu", "eu", "us"], &[1, 2]);
    assert_eq!(missing(&fleet), [] as [u64; 0], "two are enough");
    demand(&mut fleet, 4);
    assert_eq!(missing(&fleet), [4], "where it is asked for");
    put_instance(&mut record(&mut fleet, 1), &revision);
    assert_eq!(missing(&fleet), [4]);
    record(&mut fleet, 2).free.memory_bytes = 0;
    assert_eq!(missing(&fleet), [3, 4], "one of two is full");

    assert_eq!(
        missing(&site(&["eu", "us"], &[])),
        [] as [u64; 0],
        "nobody has it or wants it"
    );
    let mut alone = site(&["eu", "us"], &[2]);
    record(&mut alone, 1).serving = false;
    assert_eq!(missing(&alone), [] as [u64; 0], "nobody else is there");
}

#[test]
fn every_node_names_the_same_hosts() {
    let revision = revision();
    let mut fleet = site(&["eu", "eu", "us", "us", "us"], &[4]);
    let own = ahead(&fleet, &revision);
    assert_eq!(own.len(), 1);
    for me in 2..=5 {
        fleet.me = NodeId(me);
        let rtt = u32::try_from(me).unwrap() * 1_000;
        fleet
            .members
            .values_mut()
            .for_each(|m| m.rtt_micros = Some(rtt));
        assert_eq!(ahead(&fleet, &revision), own);
    }
}

#[test]
fn a_node_counts_with_what_its_own_starts_took() {
    let revision = revision();
    let mut fleet = fleet();
    let took = |fleet: &mut Fleet, id: u64, micros: u32| {
        record(fleet, id).starts = vec![StartTime {
            revision: revision.key.clone(),
            micros,
        }];
    };
    took(&mut fleet, 1, 4_000_000);
    took(&mut fleet, 2, 1_000_000);
    for fleet in [fleet.clone(), fleet.indexed()] {
        let receipt = place(&fleet, &revision, &ask());
        assert_eq!(ranking(&receipt), [2, 3, 1], "slow here");
        let starts = receipt.ranked().map(|(_, c)| c.parts.start);
        let mean = "the others are taken for the mean";
        assert_eq!(
            starts.collect::<Vec<_>>(),
            [1_000_000, 2_500_000, 4_000_000],
            "{mean}"
        );
    }
}

#[test]
fn a_service_says_what_it_would_rather_have() {
    let mut fleet = fleet();
    for id in [2, 3] {
        fleet.members.get_mut(&NodeId(id)).unwrap().rtt_micros = Some(0);
    }
    record(&mut fleet, 3).free.memory_bytes = 1 << 30;
    let label = |fleet: &mut Fleet, id, label: &str, value: &str| {
        let labels = &mut record(fleet, id).labels;
        labels.insert(label.to_owned(), value.to_owned());
    };
    let mut revision = revision();
    assert_eq!(
        ranked(&fleet, &revision, &ask()),
        [1, 2, 3],
        "the fuller one last"
    );
    revision.spec.place.fit = Fit::Pack;
    assert_eq!(ranked(&fleet, &revision, &ask())[0], 3, "and first");
    label(&mut fleet, 2, "disk", "nvme");
    let mut prefer = |weight| {
        revision.spec.place.prefer = vec![Preference {
            label: "disk".to_owned(),
            value: "nvme".to_owned(),
            weight,
        }];
        ranked(&fleet, &revision, &ask())
    };
    assert_eq!(prefer(50), [2, 3, 1]);
    assert_eq!(prefer(-50), [3, 1, 2]);
    prefer(1);
    for (id, figure) in [(1, "20"), (2, "900"), (3, "much")] {
        label(&mut fleet, id, ENERGY_LABEL, figure);
    }
    revision.spec.place.energy = 100;
    let receipt = place(&fleet, &revision, &ask());
    assert_eq!(
        ranking(&receipt),
        [1, 3, 2],
        "what says nothing is as the middle"
    );
    let parts = receipt
        .ranked()
        .map(|(_, c)| (c.parts.energy, c.cost_micros == c.parts.sum()));
    assert_eq!(
        parts.collect::<Vec<_>>(),
        [(20_000, true), (500_000, true), (900_000, true)]
    );
}

#[test]
fn what_is_old_weighs_less_and_does_for_want_of_better() {
    let mut fleet = fleet();
    let ask = Ask {
        from: NodeId(1),
        ..Ask::default()
    };
    let winner = |fleet: &Fleet| {
        let plain = place(fleet, &revision(), &ask);
        let indexed = place(&fleet.clone().indexed(), &revision(), &ask);
        let first = |receipt: &Receipt| receipt.ranked().next().map(|(node, _)| node);
        assert_eq!(first(&plain), first(&indexed));
        first(&plain)
    };
    let best = winner(&fleet).unwrap();
    fleet.members.get_mut(&best).unwrap().silent = 6;
    let second = winner(&fleet).unwrap();
    assert_ne!(second, best);
    for member in fleet.members.values_mut() {
        member.silent = 6;
    }
    assert_eq!(winner(&fleet), Some(best), "they are all as old");
}
