//! One node's log files: the past of them, and what is appended while someone follows.

use std::collections::BTreeMap;

use netfabric::wire::api::LogLine;
use scheduler::model::InstanceId;
use tokio::sync::mpsc;

use super::{FOLLOW_PERIOD, LogQuery};
use crate::agent::Agent;
use crate::runtime::logs::{self, Follower};

fn named(line: logs::LogLine, node: &str, instance: &InstanceId) -> LogLine {
    LogLine {
        time: line.time,
        node: node.to_owned(),
        instance: instance.clone(),
        stream: line.stream,
        line: line.line,
        partial: line.partial,
    }
}

/// Where the reading of each instance's log goes on.
pub(super) type Followed = BTreeMap<InstanceId, Follower>;

/// The newest `query.tail` lines of this node, oldest first, and where to go on.
pub(super) async fn past(agent: &Agent, query: &LogQuery) -> (Vec<LogLine>, Followed) {
    let (folders, node, query) = (agent.log_folders(query), agent.node_name(), query.clone());
    let read = move || {
        let mut lines = Vec::new();
        let mut followed = Followed::new();
        for folder in folders {
            let wanted = |line: &logs::LogLine| query.wants(line.time, &line.line);
            // A log that cannot be read, or was taken away meanwhile, has no lines.
            let Ok((last, follower)) = logs::tail_and_follow(&folder.path, query.tail, wanted)
            else {
                continue;
            };
            lines.extend(last.into_iter().map(|l| named(l, &node, &folder.instance)));
            followed.insert(folder.instance, follower);
        }
        lines.sort_by_key(|line| line.time);
        let surplus = lines.len().saturating_sub(query.tail);
        (lines.split_off(surplus), followed)
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Sends lines as they are appended, of instances that come later too, until nobody listens.
pub(super) async fn follow(
    agent: Agent,
    query: LogQuery,
    mut followed: Followed,
    lines: mpsc::Sender<LogLine>,
) {
    let node = agent.node_name();
    loop {
        let folders = agent.log_folders(&query);
        // Each keeps a file open; logs that are gone for good need none.
        followed.retain(|id, _| folders.iter().any(|folder| folder.instance == *id));
        for folder in folders {
            let follower = followed
                .entry(folder.instance.clone())
                .or_insert_with(|| Follower::from_start(&folder.path));
            // The last lines of an instance that has ended are where its log was put away.
            follower.moved_to(&folder.path);
            for line in follower.next_lines().unwrap_or_default() {
                if query.wants(line.time, &line.line)
                    && lines
                        .send(named(line, &node, &folder.instance))
                        .await
                        .is_err()
                {
                    return;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_PERIOD) => {}
            () = lines.closed() => return,
        }
    }
}
