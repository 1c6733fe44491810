//! What every node says of itself, told to every other: one signed record per node, carried by
//! chitchat over the mesh's own streams. Chitchat sends each key that changed as a whole, so what
//! changes with every request, and what the node measures, have keys beside the record's.
//!
//! Chitchat is an untrusted carrier: any member could make it say anything of any node. A record
//! counts only when the node's own key signed it, and a node's records never go backwards. Who may
//! speak at all is the registry's word ([`Trust`]); what follows from the records is not decided
//! here.

mod beside;
mod carrier;
mod check;
mod doubt;
mod driver;
mod ledger;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use scheduler::fleet::Word;
use scheduler::model::{Measured, NodeId, NodeRecord};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::transport::Mesh;
use crate::wire::codec::CodecError;

use beside::{Load, Said};
use record::Purpose;

pub use record::RECORD_LIMIT;

/// The usual time between two rounds.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Low bits of a chitchat generation: restarts of the gossip task within one incarnation.
const RESTART_BITS: u32 = 12;

/// A record is sent as a whole at least so long after a load alone was: nodes of an earlier version do
/// not read loads.
const WHOLE_AFTER: Duration = Duration::from_secs(10);

/// Every node heard of, this one included.
pub type Members = Arc<BTreeMap<NodeId, Heard>>;

/// What a node says, by its newest word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub record: Word,
    pub measured: Arc<Measured>,
    pub life: Life,
}

/// What is known of a node's being there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Life {
    /// Whether it seems alive.
    pub alive: bool,
    /// For how many rounds nothing was heard of it, where that is longer than it takes as a rule; 0 otherwise.
    pub silent: u8,
    /// It seems alive, but was asked directly and gave no answer, and has not been heard since.
    pub lost: bool,
}

/// Says which key a node's records are signed with.
pub trait Trust: Send + Sync + 'static {
    /// None for a node that is not enrolled, or revoked: its records do not count.
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]>;
}

#[derive(Debug, Clone)]
pub struct GossipConfig {
    pub cluster_id: String,
    pub me: NodeId,
    /// Higher at every start of the daemon; below 2^52.
    pub incarnation: u64,
    /// Where the others reach this node's mesh.
    pub advertise: SocketAddr,
    /// Mesh addresses of other nodes; those that do not answer do no harm.
    pub seeds: Vec<SocketAddr>,
    /// Time between two rounds; [`INTERVAL`] but in tests.
    pub interval: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("an incarnation must be below 2^52, not {0}")]
    Incarnation(u64),
    #[error("the record cannot be packed: {0}")]
    Pack(#[source] std::io::Error),
    #[error("the record has {len} bytes, packed; others accept at most {RECORD_LIMIT}")]
    RecordTooLarge { len: usize },
    #[error("the record cannot be encoded: {0}")]
    Codec(#[from] CodecError),
    #[error("gossip has ended")]
    Ended,
}

/// This node's voice and ear. Cheap to clone; gossip ends with the last clone.
#[derive(Clone)]
pub struct Gossip {
    inner: Arc<Inner>,
}

struct Inner {
    mesh: Mesh,
    config: GossipConfig,
    /// What was said last; guards its order.
    last: Mutex<Last>,
    published: watch::Sender<Option<Published>>,
    members: watch::Receiver<Members>,
    restarts: Arc<AtomicU64>,
}

#[derive(Default)]
struct Last {
    record: Option<Word>,
    /// The last that was sent as a whole.
    whole: Option<Word>,
    /// Since when only loads were sent.
    loads_since: Option<Instant>,
    measured: Arc<Measured>,
    measured_seq: u64,
    texts: BTreeMap<&'static str, String>,
}

/// What is on its way out: by key, and as it is.
#[derive(Debug, Clone)]
struct Published {
    record: Word,
    measured: Arc<Measured>,
    texts: BTreeMap<&'static str, String>,
}

impl Gossip {
    /// Begins to listen, and to speak once something is published. Must be called inside a tokio
    /// runtime. Takes over the mesh's gossip streams.
    pub fn start(
        mesh: Mesh,
        config: GossipConfig,
        trust: Arc<dyn Trust>,
    ) -> Result<Self, GossipError> {
        if config.incarnation >> (u64::BITS - RESTART_BITS) != 0 {
            return Err(GossipError::Incarnation(config.incarnation));
        }
        let (published, to_publish) = watch::channel(None);
        let (members_in, members) = watch::channel(Members::default());
        let restarts = Arc::new(AtomicU64::new(0));
        driver::spawn(driver::Parts {
            mesh: mesh.clone(),
            config: config.clone(),
            trust,
            published: to_publish,
            members: members_in,
            restarts: restarts.clone(),
        });
        let last = Mutex::default();
        let inner = Inner {
            mesh,
            config,
            last,
            published,
            members,
            restarts,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Says this of the node from now on. Node, incarnation and sequence number are stamped here;
    /// a record that says nothing new is not sent again, one whose load alone is new goes as that, and of
    /// several at once only the last is sent.
    pub fn publish(&self, mut record: NodeRecord) -> Result<(), GossipError> {
        let inner = &*self.inner;
        let mut last = inner.last.lock().unwrap_or_else(PoisonError::into_inner);
        record.node = inner.config.me;
        record.incarnation = inner.config.incarnation;
        record.seq = last.record.as_ref().map_or(1, |last| last.seq);
        let late = |since: Instant| since.elapsed() >= WHOLE_AFTER;
        let late = last.loads_since.is_some_and(late);
        if last.record.as_deref() == Some(&record) && !late {
            return Ok(());
        }
        record.seq += u64::from(last.record.is_some());
        let whole = last.whole.as_ref().filter(|_| !late);
        let load = whole.and_then(|whole| Load::between(whole, &record));
        if let Some(what) = load {
            let text = self.seal(Purpose::Load, record.seq, what)?;
            last.texts.insert(driver::LOAD, text);
            last.loads_since.get_or_insert_with(Instant::now);
        } else {
            let identity = inner.mesh.identity();
            let cluster_id = &inner.config.cluster_id;
            let text = record::seal(&record, cluster_id, |bytes| identity.sign(bytes))?;
            last.texts.insert(driver::RECORD, text);
            last.whole = Some(record.clone().into());
            last.loads_since = None;
        }
        last.record = Some(record.into());
        self.send(&last)
    }

    /// Says this of what the node measures from now on; the same again is not sent again.
    pub fn measure(&self, measured: &Arc<Measured>) -> Result<(), GossipError> {
        let mut last = self
            .inner
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.measured == *measured {
            return Ok(());
        }
        let seq = last.measured_seq + 1;
        let text = self.seal(Purpose::Measured, seq, beside::sections(measured)?)?;
        last.texts.insert(driver::MEASURED, text);
        (last.measured, last.measured_seq) = (Arc::clone(measured), seq);
        self.send(&last)
    }

    fn seal<T>(&self, purpose: Purpose, seq: u64, what: T) -> Result<String, GossipError>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let (config, identity) = (&self.inner.config, self.inner.mesh.identity());
        let said = Said {
            node: config.me,
            incarnation: config.incarnation,
            seq,
            what,
        };
        said.seal(purpose, &config.cluster_id, |bytes| identity.sign(bytes))
    }

    /// Nothing goes out before there is a record.
    fn send(&self, last: &Last) -> Result<(), GossipError> {
        let Some(record) = last.record.clone() else {
            return Ok(());
        };
        let published = Published {
            record,
            measured: last.measured.clone(),
            texts: last.texts.clone(),
        };
        let sent = self.inner.published.send(Some(published));
        sent.map_err(|_| GossipError::Ended)
    }

    /// How often the carrier died and was started again; more than none deserves a look.
    pub fn restarts(&self) -> u64 {
        self.inner.restarts.load(Ordering::Relaxed)
    }

    /// Everyone's verified records, kept up to date.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.inner.members.clone()
    }
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}
