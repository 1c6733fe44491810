//! The index follows the fleet through joins, changes and losses, whoever still reads an old one.

use std::net::{Ipv4Addr, SocketAddr};

use scheduler::model::{Name, NodeRecord, Resources};

use super::*;

pub(super) fn member(id: u64, free: u32) -> Member {
    let name = |text: &str| Name::new(text).unwrap();
    let capacity = Resources {
        cpu_millis: 4_000,
        memory_bytes: 8 << 30,
        instances: 10,
    };
    let record = NodeRecord {
        node: NodeId(id),
        name: name(&format!("n{id}")),
        region: name("eu"),
        zone: name("a"),
        labels: BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: String::new(),
        mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        ingress: Vec::new(),
        serving: true,
        cordoned: false,
        capacity,
        free: Resources {
            cpu_millis: free,
            ..capacity
        },
        registry_index: 0,
        instances: Vec::new(),
        demand: Vec::new(),
        starts: Vec::new(),
        images: Vec::new(),
    };
    Member::new(record, true, Some(1_000))
}

fn fleet(members: &[(u64, u32)]) -> Fleet {
    let members = members
        .iter()
        .map(|(id, free)| (NodeId(*id), member(*id, *free)));
    Fleet {
        me: NodeId(1),
        members: members.collect(),
        ..Fleet::default()
    }
}

fn shown(index: &Index) -> Vec<(u64, u32)> {
    let rows = index.slots().filter_map(|slot| index.row(slot));
    rows.map(|row| (row.node.0, row.free.cpu_millis)).collect()
}

#[test]
fn the_index_follows_whoever_still_reads() {
    let steps: [&[(u64, u32)]; 6] = [
        &[(1, 100)],
        &[(1, 100), (2, 200), (3, 300)],
        &[(1, 100), (2, 250), (3, 300)],
        &[(1, 100), (3, 300)],
        &[(1, 100), (3, 300)],
        &[(1, 90), (3, 310), (4, 400)],
    ];
    for reading in [false, true] {
        let mut indexer = Indexer::default();
        let mut old = fleet(&[]);
        let mut held = Vec::new();
        for step in steps {
            let mut new = fleet(step);
            let index = indexer.follow(&old, &new);
            assert_eq!(shown(&index), step);
            if reading {
                held.push((index.clone(), step));
            }
            new.index = Indexed(Some(index));
            old = new;
        }
        for (index, step) in held {
            assert_eq!(shown(&index), step, "what is read does not change");
        }
    }
}
