//! The streams of one HTTP/2 connection: how many are under way, and an end to those whose client
//! takes nothing of its answer. h2 asks a body for more only when the client's window has room, so what
//! an answer would say of its own time is never heard there.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

tokio::task_local! {
    /// Until when the stream of this task has its answer taken.
    static UNTIL: Arc<OnceLock<Instant>>;
}

/// The answer of this task's stream is to be taken by then.
pub(super) fn taken_by(until: Instant) {
    // Outside of a stream nobody asks, and the first word counts.
    let _ = UNTIL.try_with(|cell| cell.set(until));
}

/// Runs a connection's streams. Clones are the same connection's.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    under_way: watch::Sender<usize>,
}

/// A stream under way, until it is dropped.
struct OneMore(watch::Sender<usize>);

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            under_way: watch::Sender::new(0),
        }
    }

    /// Returns when none has been under way for so long.
    pub(super) async fn idle_for(&self, length: Duration) {
        let mut under_way = self.under_way.subscribe();
        loop {
            if under_way.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            if timeout(length, under_way.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.under_way.send_modify(|count| *count += 1);
        let one = OneMore(self.under_way.clone());
        tokio::spawn(async move {
            in_time(stream).await;
            drop(one);
        });
    }
}

/// Runs a stream; one whose answer is not taken in time is dropped, which resets it.
async fn in_time(stream: impl Future<Output = ()>) {
    let until = Arc::new(OnceLock::new());
    let mut stream = pin!(UNTIL.scope(Arc::clone(&until), stream));
    let mut timer = None;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(until) = until.get() else {
            return Poll::Pending;
        };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(*until)));
        timer.as_mut().poll(cx)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use hyper::rt::Executor as _;
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_answer_is_not_taken_and_no_other_does() {
        let streams = Streams::new();
        let (said, heard) = oneshot::channel::<()>();
        let begun = Instant::now();
        streams.execute(async move {
            let _said = said;
            taken_by(begun + Duration::from_secs(5));
            taken_by(begun + Duration::from_secs(500));
            std::future::pending::<()>().await;
        });
        let (done, end) = oneshot::channel();
        streams.execute(async move {
            sleep(Duration::from_hours(1)).await;
            let _ = done.send(());
        });
        assert!(heard.await.is_err(), "it was dropped");
        assert_eq!(begun.elapsed().as_secs(), 5);
        assert_eq!(*streams.under_way.borrow(), 1);
        end.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 3600);
        taken_by(begun);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_nothing_has_been_under_way() {
        let streams = Streams::new();
        let begun = Instant::now();
        streams.execute(sleep(Duration::from_secs(100)));
        streams.idle_for(Duration::from_mins(1)).await;
        assert_eq!(begun.elapsed().as_secs(), 160);
    }
}
