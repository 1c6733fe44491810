//! The meter on a runtime without containers: what it writes is what the next one reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netfabric::ingress::Local;
use netfabric::wire::usage::UsageView;
use scheduler::model::{Name, NodeId, Protocol, RevisionKey, ServiceKey};

use super::*;
use crate::runtime::fake::Fake;
use crate::runtime::{ContainerSpec, Usage};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn revision() -> RevisionKey {
    RevisionKey {
        namespace: Name::default_namespace(),
        name: name("web-00001"),
    }
}

fn report(id: &InstanceId) -> InstanceReport {
    InstanceReport {
        id: id.clone(),
        service: ServiceKey {
            namespace: Name::default_namespace(),
            name: name("web"),
        },
        revision: revision(),
        state: InstanceState::Ready,
        since: clock::unix(),
        in_flight: 0,
        concurrency_milli: 0,
        failure: None,
        steward: None,
        activity: scheduler::model::Activity::default(),
    }
}

struct Node {
    fake: Arc<Fake>,
    local: Arc<Local>,
    meter: Meter,
}

/// Instance `a` has received this much since it has a network.
struct OneCable;

#[async_trait]
impl Cables for OneCable {
    fn all(&self) -> io::Result<BTreeMap<InstanceId, Traffic>> {
        let traffic = Traffic {
            in_bytes: 3000,
            ..Traffic::default()
        };
        Ok(BTreeMap::from([(InstanceId("a".to_owned()), traffic)]))
    }

    async fn one(&self, id: &InstanceId) -> Option<Traffic> {
        self.all().ok()?.remove(id)
    }
}

fn boot(data: &Path, fake: &Arc<Fake>) -> Node {
    let local = Local::new();
    let opened = Meter::open(data, fake.clone(), Arc::new(OneCable), local.clone());
    Node {
        fake: fake.clone(),
        local,
        meter: opened.unwrap(),
    }
}

impl Node {
    fn see(&self, id: &InstanceId) {
        self.meter
            .observe(&[report(id)], |report| owner(None, report));
    }

    fn use_cpu(&self, id: &InstanceId, cpu_micros: u64) {
        let usage = Usage {
            origin: 7,
            cpu_micros,
            ..Usage::default()
        };
        self.fake.use_up(id, usage);
    }

    fn view(&self) -> UsageView {
        self.meter
            .view(&UsageQuery::default(), NodeId(1), &name("par-1"))
    }
}

#[tokio::test]
async fn a_killed_meter_s_successor_goes_on_from_the_books() {
    let data = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::new(data.path()));
    let id = InstanceId("a".to_owned());
    let spec = ContainerSpec::new(id.clone(), PathBuf::from("/"), PathBuf::from("/x"));
    fake.create(&spec).await.unwrap();

    let first = boot(data.path(), &fake);
    first.see(&id);
    first.use_cpu(&id, 1_000);
    let addr = "127.0.0.1:9".parse().unwrap();
    first
        .local
        .open(id.clone(), revision(), addr, Protocol::Http1, 0, false);
    first.meter.read_all().await;
    first.meter.write(false).await;
    first.use_cpu(&id, 1_500);
    first.meter.read_all().await;
    assert_eq!(first.view().instances[0].total.cpu_micros, 1_500);
    // Killed: what was read since the last writing is read again, once.
    drop(first);

    let second = boot(data.path(), &fake);
    second.use_cpu(&id, 1_800);
    second.see(&id);
    second.meter.read_all().await;
    let view = second.view();
    assert_eq!(view.instances[0].total.cpu_micros, 1_800);
    assert_eq!(view.instances[0].total.net_in_bytes, 3_000);
    assert_eq!(view.revisions[0].total, view.instances[0].total);

    // It vanishes from the record without a word: what was read stays.
    second.use_cpu(&id, 2_000);
    second.meter.observe(&[], |report| owner(None, report));
    second.meter.close().await;
    fake.delete(&id).await.unwrap();
    let third = boot(data.path(), &fake);
    let view = third.view();
    assert!(view.instances.is_empty());
    assert_eq!(view.revisions[0].total.instances, 1);
    assert_eq!(view.revisions[0].total.cpu_micros, 1_800);
    let none = UsageQuery {
        namespace: Some(name("other")),
        service: None,
    };
    let other = third.meter.view(&none, NodeId(1), &name("par-1"));
    assert_eq!(other, UsageView::default());
}

#[tokio::test]
async fn a_disk_that_takes_nothing_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::new(data.path()));
    let id = InstanceId("a".to_owned());
    let spec = ContainerSpec::new(id.clone(), PathBuf::from("/"), PathBuf::from("/x"));
    fake.create(&spec).await.unwrap();
    let node = boot(data.path(), &fake);
    node.see(&id);
    node.use_cpu(&id, 1_000);
    node.meter.read_all().await;
    std::fs::remove_dir_all(data.path().join("meter")).unwrap();
    node.meter.write(false).await;
    assert!(node.meter.ledger().dirty, "still to be written");
    std::fs::create_dir(data.path().join("meter")).unwrap();
    node.meter.write(false).await;
    assert!(!node.meter.ledger().dirty);
    let next = boot(data.path(), &fake);
    assert_eq!(next.view().revisions[0].total.cpu_micros, 1_000);
}

#[test]
fn the_machine_s_age_is_read_in_milliseconds() {
    assert_eq!(parse_uptime("350735.47 234388.90\n"), Some(350_735_470));
    assert_eq!(parse_uptime("7.05 0.00"), Some(7_050));
    assert_eq!(parse_uptime("7"), None);
    assert!(uptime().unwrap() > 0);
}
