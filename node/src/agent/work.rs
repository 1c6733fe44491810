//! What the agent knows of an instance that the pure machine does not need to.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netfabric::wire::peer::{StartRefusal, Started};
use scheduler::converge::{Admission, Probes};
use scheduler::model::{InstanceId, Revision};
use scheduler::place;
use tokio::sync::oneshot;

use super::files::InstanceRecord;

/// Launch to ready. Kubernetes gives a default startup probe less, Cloud Run four minutes; a
/// program that takes longer says so with the thresholds of its startup or readiness probe.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The annotation of a revision whose instances are never held still, for programs that work
/// between requests: `selvedge.dev/freeze: "never"`.
pub(super) const FREEZE: &str = "selvedge.dev/freeze";
pub(super) const NEVER: &str = "never";
/// The same as `"asked"`: only requests and leases keep one going, whatever else it computes.
pub(super) const ASKED: &str = "asked";

pub(super) type Reply = oneshot::Sender<Result<Started, StartRefusal>>;

pub(super) struct Work {
    pub record: InstanceRecord,
    /// Of its network, once it has one.
    pub address: Option<Ipv4Addr>,
    pub stop_signal: i32,
    /// Phases of the cold-start bill.
    pub phases: Vec<(String, u64)>,
    lap: Instant,
    /// Requests may enter, or could once.
    pub open: bool,
    /// Somebody waits for its end.
    pub watched: bool,
    /// It was parked, and its record on disk does not say yet whose it became.
    pub unrecorded: bool,
    /// Who waits for it to be ready.
    pub replies: Vec<Reply>,
}

impl Work {
    pub fn new(record: InstanceRecord, stop_signal: i32) -> Self {
        Self {
            record,
            address: None,
            stop_signal,
            phases: Vec::new(),
            lap: Instant::now(),
            open: false,
            watched: false,
            unrecorded: false,
            replies: Vec::new(),
        }
    }

    pub fn started(&self, id: &InstanceId) -> Started {
        Started {
            instance: id.clone(),
            phases: self.phases.clone(),
        }
    }

    /// The next phase begins; those before it are on the bill.
    pub fn begin(&mut self, phases: Vec<(String, u64)>) {
        self.phases = phases;
        self.lap = Instant::now();
    }

    pub fn lap(&mut self, phase: &str) {
        let micros = u64::try_from(self.lap.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phases.push((phase.to_owned(), micros));
        self.lap = Instant::now();
    }
}

/// What an instance of the revision is admitted with.
pub(super) fn admission(id: &InstanceId, revision: &Revision) -> Admission {
    let spec = &revision.spec;
    let millis = |seconds: u32| u64::from(seconds) * 1000;
    let probes = spec.main().map(Probes::of).unwrap_or_default();
    let patience = probes.readiness.map_or(0, |plan| plan.budget_ms());
    let deadline = u64::try_from(START_DEADLINE.as_millis()).unwrap_or(u64::MAX);
    Admission {
        id: id.clone(),
        service: revision.service.clone(),
        revision: revision.key.clone(),
        needs: place::needs(spec),
        asked: None,
        port: spec.port().container_port,
        promised: 0,
        start_deadline_ms: deadline.max(patience),
        drain_ms: millis(spec.timeout_seconds),
        grace_ms: millis(spec.termination_grace_seconds),
        probes,
        freezes: spec.annotations.get(FREEZE).is_none_or(|v| v != NEVER),
        works_unasked: spec.annotations.get(FREEZE).is_none_or(|v| v != ASKED),
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::{
        Container, ImagePin, Name, Probe, ProbeAction, RevisionKey, RevisionSpec, RevisionState,
        ServiceKey, UnixMs,
    };

    use super::*;

    fn admitted(change: impl FnOnce(&mut RevisionSpec)) -> Admission {
        let name = |text: &str| Name::new(text).unwrap();
        let mut spec = RevisionSpec {
            containers: vec![Container::default()],
            ..RevisionSpec::default()
        };
        change(&mut spec);
        let revision = Revision {
            key: RevisionKey {
                namespace: name("default"),
                name: name("web-00001"),
            },
            service: ServiceKey {
                namespace: name("default"),
                name: name("web"),
            },
            generation: 1,
            created: UnixMs(0),
            spec,
            image: ImagePin {
                reference: "r/web:1".into(),
                digest: "sha256:0".into(),
            },
            state: RevisionState::Pending,
        };
        admission(&InstanceId("web-00001-a".into()), &revision)
    }

    #[test]
    fn an_instance_is_frozen_unless_its_revision_says_never() {
        assert!(admitted(|_| {}).freezes);
        let never = |spec: &mut RevisionSpec| {
            spec.annotations.insert(FREEZE.into(), NEVER.into());
        };
        assert!(!admitted(never).freezes);
    }

    #[test]
    fn a_patient_readiness_probe_gives_a_start_more_time() {
        let probe = Probe {
            action: ProbeAction::Tcp { port: 0 },
            initial_delay_seconds: 5,
            period_seconds: 10,
            timeout_seconds: 1,
            success_threshold: 1,
            failure_threshold: 6,
        };
        assert_eq!(admitted(|_| {}).start_deadline_ms, 30_000);
        let patient = admitted(|spec| spec.containers[0].readiness = Some(probe));
        assert_eq!(patient.start_deadline_ms, 65_000);
        assert!(patient.probes.readiness.is_some() && patient.probes.liveness.is_none());
    }
}
