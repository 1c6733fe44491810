//! A client that watches the registry: it follows one node's steps, goes to the next node when
//! that one fails it, lists again when it missed too much, and notes all of it.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use tokio::sync::watch;

use super::api::{self, Door, Lines, Mark};
use super::history::{Seen, WatchEvent, WatchNote, now};

/// Two beats and a bit: the node is gone, whatever the connection says.
const SILENCE: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(100);

/// The index a watch has to come to at the end of a run, and until when.
pub(super) type Goal = Option<(u64, Instant)>;

pub(super) struct Watched {
    pub doors: Vec<Door>,
    /// Which of the nodes it begins with; its number too.
    pub first: usize,
    pub after: u64,
    pub mark: Mark,
    pub goal: watch::Receiver<Goal>,
    pub dir: PathBuf,
}

/// The notes, in memory and on disk.
struct Notes {
    file: File,
    all: Vec<WatchNote>,
    node: String,
}

impl Notes {
    fn note(&mut self, what: WatchEvent) -> Result<()> {
        let note = WatchNote {
            t: now(),
            node: self.node.clone(),
            what,
        };
        let mut line = serde_json::to_vec(&note)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.all.push(note);
        Ok(())
    }
}

impl Watched {
    /// Follows until the goal is set and reached, or its time is up.
    pub async fn run(mut self) -> Result<Vec<WatchNote>> {
        let path = self.dir.join(format!("watch-{}.jsonl", self.first));
        let mut notes = Notes {
            file: File::create(path)?,
            all: Vec::new(),
            node: String::new(),
        };
        for turn in self.first.. {
            let door = self.doors[turn % self.doors.len()].clone();
            notes.node.clone_from(&door.node);
            notes.note(WatchEvent::Open { after: self.after })?;
            let why = match door.watch(self.after).await {
                Ok(mut lines) => self.follow(&mut lines, &mut notes).await?,
                Err(why) => why,
            };
            if why == "gone" {
                self.list_again(&door, &mut notes).await?;
            } else {
                notes.note(WatchEvent::Closed { why })?;
            }
            if self.is_over() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(notes.all)
    }

    /// Returns why it ended.
    async fn follow(&mut self, lines: &mut Lines, notes: &mut Notes) -> Result<String> {
        while !self.is_over() {
            let patience = tokio::time::sleep(SILENCE);
            let line = tokio::select! {
                line = lines.next() => line,
                () = patience => return Ok("silence".to_owned()),
                // Looks at the goal again.
                Ok(()) = self.goal.changed() => continue,
            };
            let line = match line {
                Ok(Some(line)) => line,
                Ok(None) => return Ok("the end".to_owned()),
                Err(error) => return Ok(format!("{error:#}")),
            };
            match event(&line, self.mark) {
                Some(event) => {
                    if let WatchEvent::Step { index, .. } = &event {
                        self.after = *index;
                    }
                    notes.note(event)?;
                }
                None => {
                    return Ok(line["error"]["code"]
                        .as_str()
                        .unwrap_or("strange")
                        .to_owned());
                }
            }
        }
        Ok("the run is over".to_owned())
    }

    async fn list_again(&mut self, door: &Door, notes: &mut Notes) -> Result<()> {
        match door.scan(self.mark).await {
            Ok(scan) => {
                self.after = scan.at;
                notes.note(WatchEvent::Listed { scan })
            }
            Err(error) => notes.note(WatchEvent::Closed {
                why: format!("{error:#}"),
            }),
        }
    }

    fn is_over(&self) -> bool {
        let goal = *self.goal.borrow();
        goal.is_some_and(|(index, until)| self.after >= index || Instant::now() > until)
    }
}

/// A line of a watch; nothing when it says that the watch has ended.
fn event(line: &Value, mark: Mark) -> Option<WatchEvent> {
    if let Some(index) = line["beat"].as_u64() {
        return Some(WatchEvent::Beat { index });
    }
    let index = line["index"].as_u64()?;
    let changes = line["changes"].as_array()?.iter();
    let changes = changes.filter_map(|change| seen(change, mark));
    Some(WatchEvent::Step {
        index,
        changes: changes.collect(),
    })
}

fn seen(change: &Value, mark: Mark) -> Option<(String, Option<Seen>)> {
    if let Some(key) = change.get("serviceGone") {
        return Some((api::key(&key["name"]), None));
    }
    let service = change.get("service")?;
    let seen = api::seen(service, mark)?;
    Some((api::key(&service["key"]["name"]), Some(seen)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_become_events() {
        let key = json!({ "namespace": "default", "name": "a" });
        let meta = json!({ "annotations": { "serial": "7" }, "resourceVersion": 91 });
        let line = json!({
            "index": 91,
            "changes": [
                { "service": { "key": key, "meta": meta } },
                { "serviceGone": key },
                { "revisionGone": key },
            ],
        });
        let seen = Seen { v: 7, rev: 91 };
        let changes = vec![("svc/a".to_owned(), Some(seen)), ("svc/a".to_owned(), None)];
        assert_eq!(
            event(&line, Mark::Annotation),
            Some(WatchEvent::Step { index: 91, changes })
        );
        assert_eq!(
            event(&json!({ "beat": 3 }), Mark::Annotation),
            Some(WatchEvent::Beat { index: 3 })
        );
        let end = json!({ "error": { "code": "gone" } });
        assert_eq!(event(&end, Mark::Annotation), None);
    }
}
