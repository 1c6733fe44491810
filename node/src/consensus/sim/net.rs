//! The network of a simulation: requests and feeds between hosts, late, lost, twice, or cut, by
//! seed. Owns what happens on the way; who lives is the world's matter.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
use rand::rngs::StdRng;
use scheduler::model::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::trace::{note, short};
use super::world::World;
use crate::consensus::wire::{self, Request};
use crate::consensus::{Carrier, CarrierError, FeedSource, FeedStream};

/// How the ways between hosts are.
pub(super) struct Ways {
    pub rng: StdRng,
    /// One-way: from, to.
    pub cut: BTreeSet<(u64, u64)>,
    pub delay: Duration,
    /// In a thousand.
    pub loss: u32,
    pub twice: u32,
    pub messages: u64,
}

/// What a message meets on its way.
struct Leg {
    delay: Duration,
    lost: bool,
    twice: bool,
}

impl Ways {
    fn leg(&mut self, from: u64, to: u64) -> Leg {
        // Mostly near the usual delay, now and then many times of it: messages overtake.
        let stretch = if self.rng.random_ratio(1, 50) { 20 } else { 2 };
        Leg {
            delay: self
                .delay
                .mul_f64(self.rng.random_range(0.5..f64::from(stretch))),
            lost: self.cut.contains(&(from, to)) || self.rng.random_ratio(self.loss, 1000),
            twice: self.rng.random_ratio(self.twice, 1000),
        }
    }
}

/// One process's way to the others; useless once the process is gone.
pub(super) struct Link {
    pub world: Arc<World>,
    pub me: u64,
    pub process: u64,
}

fn refused() -> CarrierError {
    CarrierError::Unreachable(io::ErrorKind::ConnectionRefused.into())
}

fn lost() -> CarrierError {
    CarrierError::Lost(io::ErrorKind::TimedOut.into())
}

fn kind(request: &[u8]) -> &'static str {
    match wire::decode::<Request>(request) {
        Ok((Request::Append(_), _)) => "append",
        Ok((Request::Vote(_), _)) => "vote",
        Ok((Request::Snapshot(_), _)) => "snapshot",
        Ok((Request::Propose { .. }, _)) => "propose",
        Ok((Request::ReadIndex { .. }, _)) => "read",
        Ok((Request::Hello, _)) => "hello",
        Ok((Request::Canvass { .. }, _)) => "canvass",
        Err(_) => "nonsense",
    }
}

impl Link {
    fn lives(&self) -> bool {
        self.world.process(self.me) == Some(self.process)
    }

    async fn serve(self: Arc<Self>, to: u64, request: Arc<Vec<u8>>) -> Option<Vec<u8>> {
        let process = self.world.process(to)?;
        let registry = self.world.registry(to)?;
        let answer = registry.on_message(NodeId(self.me), &request).await;
        // A process that died meanwhile said nothing.
        (self.world.process(to) == Some(process)).then_some(answer)
    }

    fn again(&self) -> Arc<Self> {
        Arc::new(Self {
            world: self.world.clone(),
            me: self.me,
            process: self.process,
        })
    }
}

#[async_trait]
impl Carrier for Link {
    async fn call(
        &self,
        to: NodeId,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, CarrierError> {
        if !self.lives() {
            return Err(refused());
        }
        let to = to.0;
        self.world.oracle().saw(self.me, &request);
        let (number, there, back) = {
            let mut ways = self.world.ways();
            ways.messages += 1;
            (ways.messages, ways.leg(self.me, to), ways.leg(to, self.me))
        };
        let what = kind(&request);
        note(format_args!(
            "m{number} n{} > n{to} {what} {}",
            self.me,
            short(&request)
        ));
        tokio::time::sleep(there.delay).await;
        if there.lost || self.world.ways().cut.contains(&(self.me, to)) {
            tokio::time::sleep(deadline).await;
            return Err(lost());
        }
        if self.world.process(to).is_none() {
            return Err(refused());
        }
        // In tasks of their own: who asked may stop waiting, the other side goes on.
        let request = Arc::new(request);
        let first = tokio::spawn(self.again().serve(to, request.clone()));
        if there.twice {
            let second = self.again().serve(to, request);
            tokio::spawn(async move {
                tokio::time::sleep(back.delay * 2).await;
                second.await;
            });
        }
        let answer = first.await.ok().flatten().ok_or_else(lost)?;
        tokio::time::sleep(back.delay).await;
        if back.lost || self.world.ways().cut.contains(&(to, self.me)) {
            tokio::time::sleep(deadline).await;
            return Err(lost());
        }
        note(format_args!(
            "m{number} n{} < n{to} {}",
            self.me,
            short(&answer)
        ));
        if self.lives() {
            Ok(answer)
        } else {
            Err(lost())
        }
    }
}

#[async_trait]
impl FeedSource for Link {
    fn pick(&self) -> Vec<NodeId> {
        self.world.ids().into_iter().map(NodeId).collect()
    }

    async fn open(
        &self,
        node: NodeId,
        deadline: Duration,
    ) -> Result<Box<dyn FeedStream>, CarrierError> {
        let to = node.0;
        let leg = self.world.ways().leg(self.me, to);
        tokio::time::sleep(leg.delay).await;
        if leg.lost {
            tokio::time::sleep(deadline).await;
            return Err(lost());
        }
        let both = (self.world.process(to), self.world.registry(to));
        let (Some(process), Some(registry)) = both else {
            return Err(refused());
        };
        note(format_args!("feed n{} from n{to}", self.me));
        let (here, near) = tokio::io::duplex(4096);
        let (far, there) = tokio::io::duplex(4096);
        let me = self.me;
        tokio::spawn(async move { registry.serve_feed(NodeId(me), there).await });
        let ends = [(me, self.process), (to, process)];
        tokio::spawn(pump(self.world.clone(), ends, near, far));
        Ok(Box::new(here))
    }
}

/// Carries both directions of a stream until one end's process is gone. Bytes wait at a cut, as
/// those of a connection that sends again do.
async fn pump(world: Arc<World>, ends: [(u64, u64); 2], near: DuplexStream, far: DuplexStream) {
    let (near_out, near_in) = tokio::io::split(near);
    let (far_out, far_in) = tokio::io::split(far);
    let live = {
        let world = world.clone();
        move || {
            ends.iter()
                .all(|(id, process)| world.process(*id) == Some(*process))
        }
    };
    let ended = async {
        while live() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let [(me, _), (to, _)] = ends;
    tokio::select! {
        biased;
        () = ended => {}
        () = carry(&world, (me, to), near_out, far_in) => {}
        () = carry(&world, (to, me), far_out, near_in) => {}
    }
}

async fn carry(
    world: &World,
    way: (u64, u64),
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
) {
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let delay = world.ways().leg(way.0, way.1).delay;
        tokio::time::sleep(delay).await;
        while world.ways().cut.contains(&way) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
