//! The giving side of the feed: a snapshot or the steps since, then steps as they come.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::MissedTickBehavior;

use super::{BEAT, FRAME_DEADLINE, FeedError, FeedStream, HELLO_BYTES, Hello, Told, VERSION};
use super::{read_frame, write_frame};
use crate::consensus::registry::Registry;
use crate::consensus::view::{Missing, View};

const STEPS_PER_FRAME: usize = 128;

/// Serves one follower until it goes away.
pub(in crate::consensus) async fn serve<S: FeedStream>(
    registry: &Registry,
    mut stream: S,
) -> Result<(), FeedError> {
    let hello = tokio::time::timeout(FRAME_DEADLINE, read_frame(&mut stream, HELLO_BYTES));
    let hello: Hello = hello.await.map_err(|_| FeedError::Deadline)??;
    if let Err(refusal) = check(registry, &hello) {
        let message = refusal.to_string();
        write_frame(&mut stream, &Told::Refused { message }).await?;
        return Err(refusal);
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    let view = registry.view();
    let mut states = view.watch();
    let mut sent = hello.from;
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        states.borrow_and_update();
        sent = send_missing(view, &mut writer, sent).await?;
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return Ok(()) },
            _ = beat.tick() => write_frame(&mut writer, &beat_of(registry)).await?,
            // The follower has nothing more to say: it went away.
            _ = reader.read_u8() => return Ok(()),
            () = registry.stopped() => return Ok(()),
        }
    }
}

fn check(registry: &Registry, hello: &Hello) -> Result<(), FeedError> {
    if hello.version != VERSION {
        return Err(FeedError::Version(hello.version));
    }
    if hello.cluster != registry.cluster_id() {
        return Err(FeedError::ForeignCluster);
    }
    Ok(())
}

/// Brings the follower from `sent` to the newest state; returns the index it has then.
async fn send_missing(
    view: &View,
    writer: &mut (impl AsyncWrite + Unpin),
    mut sent: u64,
) -> Result<u64, FeedError> {
    loop {
        match view.since(sent, STEPS_PER_FRAME) {
            Missing::Steps(steps) => match steps.last() {
                None => return Ok(sent),
                Some((index, _)) => {
                    sent = *index;
                    write_frame(writer, &Told::Steps(steps)).await?;
                }
            },
            Missing::TooMuch => {
                let state = view.state();
                sent = state.index;
                write_frame(writer, &Told::Snapshot(Box::new((*state).clone()))).await?;
            }
        }
    }
}

fn beat_of(registry: &Registry) -> Told {
    let status = registry.status();
    let millis = |ago: Duration| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    Told::Beat {
        leader: status.leader,
        quorum_ago_millis: status.quorum_ago.map(millis),
    }
}
