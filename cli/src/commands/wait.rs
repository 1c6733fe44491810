//! Following a change until it holds: who starts what, and what went wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use netfabric::wire::api::{InstanceView, WaitResponse};
use scheduler::model::{InstanceState, Name, RevisionState};
use tokio::time::Instant;

use super::logs::Lines;
use crate::client::{ANSWER, encoded};
use crate::failure::{Exit, Failure};
use crate::printer::Printer;
use crate::session::Session;

/// Between two looks at the cluster.
pub const PACE: Duration = Duration::from_millis(500);
/// One long poll; short enough to show progress at a human pace.
const POLL: Duration = Duration::from_secs(1);
/// How far behind the leader a node that is reached may be.
const FEED_LAG: Duration = Duration::from_secs(5);
/// Lines of a failed instance's log that are shown.
const LOG_LINES: usize = 10;

/// What was reported already.
#[derive(Default)]
pub struct Seen(BTreeMap<String, String>);

impl Seen {
    /// Prints what is new since the last report, one line an instance.
    pub fn report(&mut self, instances: &[InstanceView], out: Printer) {
        for instance in instances {
            let text = line(instance);
            if self.0.get(&instance.id.0) != Some(&text) {
                out.progress(&format!("  {text}"));
                self.0.insert(instance.id.0.clone(), text);
            }
        }
    }
}

/// What it is, where and why.
pub fn line(instance: &InstanceView) -> String {
    let lost = if instance.alive { "" } else { " (node lost)" };
    let reason = instance
        .failure
        .as_ref()
        .map_or_else(String::new, |failure| {
            let first = failure.message.lines().next().unwrap_or_default();
            format!(": {}: {first}", failure.code)
        });
    format!(
        "{}: {} {}{lost}{reason}",
        instance.node_name, instance.id, instance.state
    )
}

/// A line for every instance that is to be ready and is not.
pub fn unready(instances: &[InstanceView]) -> Vec<String> {
    instances
        .iter()
        .filter(|i| !i.state.serves() && i.state != InstanceState::Parked)
        .map(line)
        .collect()
}

/// Waits until the revision is ready; its failure or the deadline is the error.
pub async fn ready(
    session: &Session,
    service: &Name,
    revision: &Name,
    patience: Duration,
) -> Result<(), Failure> {
    let began = Instant::now();
    let until = began + patience;
    let mut seen = Seen::default();
    let mut last = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(service, revision, patience, &last));
        }
        let poll = POLL.min(left);
        let path = format!(
            "{}/wait?revision={revision}&timeoutMs={}",
            session.service_path(service),
            poll.as_millis()
        );
        let asked = Instant::now();
        match session
            .client
            .get_within::<WaitResponse>(&path, poll + ANSWER)
            .await
        {
            Ok(answer) => {
                let WaitResponse { state, instances } = answer;
                seen.report(&instances, session.out);
                match state {
                    RevisionState::Ready => return Ok(()),
                    RevisionState::Failed { reason, message } => {
                        return Err(failed(session, revision, &reason, &message, &instances).await);
                    }
                    RevisionState::Pending => last = instances,
                }
            }
            // The change is accepted: a node that is away for a moment does not undo it.
            Err(error) if error.is_passing() => session.out.progress(&format!("  {error}")),
            // The node asked may be a follower that has not heard of the change yet.
            Err(error) if error.is_not_found() && began.elapsed() < FEED_LAG => {}
            Err(error) => return Err(error.into()),
        }
        // An answer that came at once must not become a busy loop.
        tokio::time::sleep_until((asked + PACE.min(poll)).min(until)).await;
    }
}

fn late(service: &Name, revision: &Name, patience: Duration, last: &[InstanceView]) -> Failure {
    let mut details = unready(last);
    if details.is_empty() {
        details.push("no node has started an instance yet".to_owned());
    }
    let message = format!("{revision} is not ready after {} s", patience.as_secs());
    Failure::new(Exit::WaitTimedOut, message)
        .details(details)
        .hint(format!("it goes on: selvedge describe service/{service}"))
}

async fn failed(
    session: &Session,
    revision: &Name,
    reason: &str,
    message: &str,
    instances: &[InstanceView],
) -> Failure {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    let mut details: Vec<String> = lines.map(str::to_owned).collect();
    for instance in instances.iter().filter(|i| i.failure.is_some()) {
        details.push(line(instance));
    }
    if message.lines().count() < 2
        && let Some(instance) = instances.iter().find(|i| i.failure.is_some())
    {
        details.extend(last_words(session, instance).await);
    }
    let exit = if reason == "CannotPlace" {
        Exit::CannotPlace
    } else {
        Exit::Failed
    };
    Failure::new(exit, format!("{revision} failed: {reason}: {first}"))
        .details(details)
        .hint(format!("selvedge describe revision/{revision}"))
}

/// The last log lines of an instance; none when they cannot be had, the failure itself stands.
async fn last_words(session: &Session, instance: &InstanceView) -> Vec<String> {
    let path = format!(
        "/v1/logs?namespace={}&instance={}&tail={LOG_LINES}&follow=false",
        instance.namespace,
        encoded(&instance.id.0)
    );
    let Ok(response) = session.client.open(&path).await else {
        return Vec::new();
    };
    let mut lines = Lines::new(response.into_body(), false);
    let mut words = Vec::new();
    while words.len() < LOG_LINES
        && let Ok(Some(line)) = lines.next().await
    {
        words.push(format!("| {}", line.line.trim_end()));
    }
    words
}
