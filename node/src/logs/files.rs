//! One node's log files: the past of them, and what is appended while someone follows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use netfabric::wire::api::LogLine;
use scheduler::model::{InstanceId, UnixMs};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{FOLLOW_PERIOD, LogQuery};
use crate::agent::{Agent, LogFiles};

/// A line as the shim writes it.
#[derive(Deserialize)]
struct Entry {
    time: u64,
    stream: String,
    line: String,
}

fn parse(text: &str, node: &str, instance: &InstanceId) -> Option<LogLine> {
    let entry: Entry = serde_json::from_str(text).ok()?;
    Some(LogLine {
        time: UnixMs(entry.time),
        node: node.to_owned(),
        instance: instance.clone(),
        stream: entry.stream,
        line: entry.line,
    })
}

/// The newest `query.tail` lines of this node, oldest first.
pub(super) async fn past(agent: &Agent, query: &LogQuery) -> Vec<LogLine> {
    let (sources, node, query) = (agent.log_files(query), agent.node_name(), query.clone());
    let read = move || {
        let mut lines: Vec<LogLine> =
            sources.iter().flat_map(|source| read_all(source, &node)).collect();
        lines.retain(|line| query.since.is_none_or(|since| line.time >= since));
        lines.sort_by_key(|line| line.time);
        lines.split_off(lines.len().saturating_sub(query.tail))
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn read_all(source: &LogFiles, node: &str) -> Vec<LogLine> {
    let texts = source.paths.iter().filter_map(|path| File::open(path).ok());
    texts
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok))
        .filter_map(|text| parse(&text, node, &source.instance))
        .collect()
}

/// The last `count` lines as plain text.
pub(super) fn tail_text(paths: &[PathBuf], count: usize) -> Vec<String> {
    let source = LogFiles { instance: InstanceId(String::new()), paths: paths.to_vec() };
    let mut lines: Vec<String> = read_all(&source, "").into_iter().map(|l| l.line).collect();
    lines.split_off(lines.len().saturating_sub(count))
}

/// Sends lines as they are appended, of instances that come later too, until nobody listens.
pub(super) async fn follow(agent: Agent, query: LogQuery, lines: mpsc::Sender<LogLine>) {
    let node = agent.node_name();
    let mut followed: BTreeMap<InstanceId, Followed> = BTreeMap::new();
    loop {
        for source in agent.log_files(&query) {
            let Some(path) = source.paths.last() else { continue };
            let file = followed
                .entry(source.instance.clone())
                .or_insert_with(|| Followed::at_start(path.clone()));
            for text in file.appended() {
                let Some(line) = parse(&text, &node, &source.instance) else { continue };
                let wanted = query.since.is_none_or(|since| line.time >= since);
                if wanted && lines.send(line).await.is_err() {
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

/// A growing file and how far it was read; a rotated one is begun anew.
struct Followed {
    path: PathBuf,
    inode: u64,
    offset: u64,
    partial: String,
}

impl Followed {
    fn at_start(path: PathBuf) -> Self {
        Self { path, inode: 0, offset: 0, partial: String::new() }
    }

    fn appended(&mut self) -> Vec<String> {
        read_from(&self.path, &mut self.inode, &mut self.offset)
            .map(|text| self.whole_lines(&text))
            .unwrap_or_default()
    }

    fn whole_lines(&mut self, text: &str) -> Vec<String> {
        self.partial.push_str(text);
        let mut lines: Vec<String> = self.partial.split('\n').map(str::to_owned).collect();
        self.partial = lines.pop().unwrap_or_default();
        lines
    }
}

fn read_from(path: &Path, inode: &mut u64, offset: &mut u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.ino() != *inode || meta.len() < *offset {
        (*inode, *offset) = (meta.ino(), 0);
    }
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.take(meta.len().saturating_sub(*offset)).read_to_end(&mut bytes)?;
    *offset += bytes.len() as u64;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_followed_file_gives_whole_lines_and_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = File::create(&path).unwrap();
        let mut followed = Followed::at_start(path.clone());
        write!(file, "one\ntw").unwrap();
        assert_eq!(followed.appended(), ["one"]);
        writeln!(file, "o").unwrap();
        assert_eq!(followed.appended(), ["two"]);
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(followed.appended(), ["three"]);
    }
}
