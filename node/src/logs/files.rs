//! One node's log files: the past of them, and what is appended while someone follows.

use std::collections::BTreeMap;

use netfabric::wire::api::LogLine;
use scheduler::model::InstanceId;
use tokio::sync::mpsc;

use super::{FOLLOW_PERIOD, LogQuery};
use crate::agent::{Agent, LogFolder};
use crate::runtime::logs::{self, Follower};

fn named(line: logs::LogLine, node: &str, instance: &InstanceId) -> LogLine {
    LogLine {
        time: line.time,
        node: node.to_owned(),
        instance: instance.clone(),
        stream: line.stream,
        line: line.line,
    }
}

/// The newest `query.tail` lines of this node, oldest first.
pub(super) async fn past(agent: &Agent, query: &LogQuery) -> Vec<LogLine> {
    let (folders, node, query) = (agent.log_folders(query), agent.node_name(), query.clone());
    let read = move || {
        let mut lines: Vec<LogLine> = folders
            .iter()
            .flat_map(|folder| tail(folder, &node, query.tail))
            .collect();
        lines.retain(|line| query.since.is_none_or(|since| line.time >= since));
        lines.sort_by_key(|line| line.time);
        lines.split_off(lines.len().saturating_sub(query.tail))
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn tail(folder: &LogFolder, node: &str, count: usize) -> Vec<LogLine> {
    // A log that cannot be read, or was taken away meanwhile, has no lines.
    let lines = logs::tail(&folder.path, count).unwrap_or_default();
    lines
        .into_iter()
        .map(|line| named(line, node, &folder.instance))
        .collect()
}

/// Sends lines as they are appended, of instances that come later too, until nobody listens.
pub(super) async fn follow(agent: Agent, query: LogQuery, lines: mpsc::Sender<LogLine>) {
    let node = agent.node_name();
    let mut followed: BTreeMap<InstanceId, Follower> = BTreeMap::new();
    loop {
        for folder in agent.log_folders(&query) {
            let follower = followed
                .entry(folder.instance.clone())
                .or_insert_with(|| Follower::from_start(&folder.path));
            for line in follower.next_lines().unwrap_or_default() {
                let wanted = query.since.is_none_or(|since| line.time >= since);
                if wanted
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
