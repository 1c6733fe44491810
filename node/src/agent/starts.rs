//! Wishes for instances, and containers parked for wishes to come.

use std::sync::Arc;

use netfabric::wire::decision::Deed;
use netfabric::wire::peer::StartRefusal;
use scheduler::converge::{Admission, Effect, Refused};
use scheduler::model::{FailReason, InstanceId, Name, Now, Revision, RevisionKey, RevisionState};
use scheduler::place::{Inputs, Passed, Receipt, misplaced};
use scheduler::registry::State;

use super::driver::{Driver, is_cordoned};
use super::files::InstanceRecord;
use super::steps::Prepared;
use super::work::{Reply, Work, admission};
use crate::clock;
use crate::telemetry::decisions::Told;

/// What the receipt of a parked container says, until a start takes it.
const PARKED: &str = "parked";

/// A wish for an instance.
pub(super) struct Start {
    pub revision: Arc<Revision>,
    pub receipt: Receipt,
    pub asked: Now,
    /// Requests that wait for it, and what one instance carries at once.
    pub held: u32,
    pub capacity: u32,
    pub replies: Vec<Reply>,
}

impl Driver {
    pub(super) fn start(&mut self, mut start: Start) -> Vec<Effect> {
        let now = clock::now();
        let key = &start.revision.key;
        // The asker ranks by what it heard of this node; what this node is, it knows itself.
        let rules = &start.revision.spec.place;
        if let Some(veto) = misplaced(&self.base.region, &self.base.labels, rules) {
            tracing::warn!(revision = %key, %veto, "asked to start what may not run here");
            return self.turn_away(start, &StartRefusal::Misplaced(veto.to_string()));
        }
        if start.held > 0
            && let Some(id) = self.node.share(now, key, start.held, start.capacity)
        {
            self.join_start(&id, start.replies);
            return Vec::new();
        }
        if is_cordoned(&self.registry, self.base.node) {
            return self.turn_away(start, &StartRefusal::NotTaking);
        }
        if let Some(whose) = self.kept.withholds(now, key, rules.priority) {
            let kept = format!("room was made for {whose}, which is of higher priority");
            refuse(start.replies, &StartRefusal::NoRoom(kept));
            return Vec::new();
        }
        let admission = Admission {
            promised: start.held,
            asked: Some(start.asked),
            ..admission(&self.name(&key.name), &start.revision)
        };
        match self.node.admit(now, admission) {
            Ok((id, effects)) => {
                tracing::info!(instance = %id, cause = start.receipt.cause, "starting an instance");
                if let Some(made) = self.kept.taken(key) {
                    start.receipt.displaces = Some(made);
                }
                self.receipts.keep(id.clone(), start.receipt.clone());
                self.note(Deed::Placed, Some(&id), &start, cause(&start.receipt));
                self.take_on(id, start);
                effects
            }
            Err(refused) => {
                let full = matches!(refused, Refused::NoRoom(_));
                if let Some((refusal, effects)) = full.then(|| self.make_room(&start)).flatten() {
                    refuse(start.replies, &refusal);
                    return effects;
                }
                let refusal = match refused {
                    Refused::NoRoom(no_room) => StartRefusal::NoRoom(no_room.to_string()),
                    Refused::CrashLoop(reason) => failed(reason),
                };
                self.turn_away(start, &refusal)
            }
        }
    }

    /// Nothing is started; the askers hear why.
    fn turn_away(&self, start: Start, refusal: &StartRefusal) -> Vec<Effect> {
        self.note(Deed::Refused, None, &start, refusal.to_string());
        refuse(start.replies, refusal);
        Vec::new()
    }

    fn note(&self, deed: Deed, instance: Option<&InstanceId>, start: &Start, why: String) {
        let told = Told {
            instance: instance.cloned(),
            why,
            receipt: (deed == Deed::Placed).then(|| start.receipt.clone()),
        };
        let revision = &start.revision;
        self.decisions
            .note(deed, (&revision.service, &revision.key), told);
    }

    /// The instance is this start's: a new one, or one that was parked.
    fn take_on(&mut self, id: InstanceId, start: Start) {
        let Start {
            revision,
            receipt,
            replies,
            ..
        } = start;
        let record = InstanceRecord {
            id: id.clone(),
            revision,
            receipt,
        };
        let parked = self.work.contains_key(&id);
        if parked {
            fail::fail_point!("agent::unparked");
        }
        let work = self
            .work
            .entry(id)
            .or_insert_with(|| Work::new(record.clone(), libc::SIGTERM));
        work.record = record;
        work.replies = replies;
        work.unrecorded = parked;
        // What it took to prepare it nobody waited for.
        work.begin(Vec::new());
    }

    /// More askers for an instance on its way; of one that is there they are told at once.
    fn join_start(&mut self, id: &InstanceId, replies: Vec<Reply>) {
        let Some(work) = self.work.get_mut(id) else {
            return;
        };
        if work.open {
            for reply in replies {
                let _ = reply.send(Ok(work.started(id)));
            }
        } else {
            work.replies.extend(replies);
        }
    }

    /// Puts a container of the revision by.
    pub(super) fn park(&mut self, key: &RevisionKey) {
        let state = self.registry.view().state();
        let Some(revision) = state.revisions.get(key) else {
            return;
        };
        let id = self.name(&key.name);
        let record = InstanceRecord {
            id: id.clone(),
            revision: Arc::new(revision.clone()),
            receipt: Receipt {
                revision: key.clone(),
                decided_by: self.base.node,
                cause: PARKED.to_owned(),
                why: String::new(),
                verdicts: Vec::new(),
                inputs: Inputs::default(),
                passed: Passed::default(),
                displaces: None,
            },
        };
        self.receipts.keep(id.clone(), record.receipt.clone());
        let admission = admission(&id, revision);
        self.work.insert(id, Work::new(record, libc::SIGTERM));
        let effects = self.node.park(clock::now(), admission);
        self.perform(effects);
    }

    /// A parked container is there. Should it die, a start must not find that out.
    pub(super) fn parked(&mut self, id: &InstanceId) {
        fail::fail_point!("agent::parked");
        tracing::debug!(instance = %id, "parked");
        self.watch_exit(id);
    }

    /// Starts another instance for those who wait for this one.
    pub(super) fn start_again(&mut self, id: &InstanceId) {
        let Some(work) = self.work.get_mut(id) else {
            return;
        };
        tracing::warn!(instance = %id, "a parked container did not start");
        let start = Start {
            revision: work.record.revision.clone(),
            receipt: work.record.receipt.clone(),
            asked: clock::now(),
            held: 0,
            capacity: 0,
            replies: std::mem::take(&mut work.replies),
        };
        let effects = self.start(start);
        self.perform(effects);
    }

    pub(super) fn note_prepared(&mut self, id: &InstanceId, prepared: Prepared) {
        if let Some(work) = self.work.get_mut(id) {
            work.address = Some(prepared.address);
            work.stop_signal = prepared.stop_signal;
            work.begin(prepared.phases);
        }
    }

    /// Looks after the parked pool.
    pub(super) fn tend(&mut self) {
        let state = self.registry.view().state();
        let open = !is_cordoned(&self.registry, self.base.node);
        let effects = self
            .node
            .tend(clock::now(), |revision| open && serves(&state, revision));
        self.perform(effects);
    }

    /// A name that no other instance here has.
    fn name(&self, revision: &Name) -> InstanceId {
        loop {
            let id = InstanceId(format!("{revision}-{}", suffix()));
            if !self.node.knows(&id) {
                return id;
            }
        }
    }
}

/// What a placement was for.
fn cause(receipt: &Receipt) -> String {
    match receipt.why.as_str() {
        "" => receipt.cause.clone(),
        why => format!("{}: {why}", receipt.cause),
    }
}

/// Whether starts of the revision are still to be expected.
fn serves(state: &State, key: &RevisionKey) -> bool {
    let revision = state.revisions.get(key);
    let service = revision.and_then(|r| state.services.get(&r.service));
    match (revision.map(|r| &r.state), service) {
        (Some(RevisionState::Ready), Some(service)) => service.routed().contains(key),
        (Some(RevisionState::Pending), Some(service)) => {
            service.status.latest_created.as_ref() == Some(key)
        }
        _ => false,
    }
}

/// Whether it was the node's fault, so that another one may do better, or the program's.
pub(super) fn refusal(reason: FailReason) -> StartRefusal {
    let FailReason { code, message } = reason;
    match code.as_str() {
        code if code.starts_with("Image") || code == "RegistryUnavailable" => {
            StartRefusal::Image(message)
        }
        "Network" | "Disk" | "Runtime" | "Volume" => StartRefusal::NoRoom(message),
        _ => failed(FailReason { code, message }),
    }
}

/// The askers may be gone already; then nobody needs the answer.
fn refuse(replies: Vec<Reply>, refusal: &StartRefusal) {
    for reply in replies {
        let _ = reply.send(Err(refusal.clone()));
    }
}

fn failed(FailReason { code, message }: FailReason) -> StartRefusal {
    StartRefusal::Failed {
        code,
        message,
        exit: None,
    }
}

/// Five letters and digits, enough to keep a revision's instances apart.
fn suffix() -> String {
    use rand::RngExt;
    const ALPHABET: &[u8] = b"23456789abcdefghjkmnpqrstuvwxyz";
    let mut rng = rand::rng();
    (0..5)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}
