//! Reads what instances wrote out of a node's data folder, while they live and when they are gone.
//!
//! ```text
//! DATA/instances/ID/{log.1,log}              of instances that are there
//! DATA/log/NAMESPACE/SERVICE/ID/{log.1,log}  of those that are gone: the newest ten of a service
//! ```
//!
//! A node keeps four to eight MiB of an instance's log, so a reader of a long or busy run reads on
//! again and again: at 500 requests a second of one instance, every minute is enough.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use super::backend::{BackendLedger, Server};
use super::client::{ClientLedger, Kind};
use crate::world::{World, until};

const FILES: [&str; 2] = ["log.1", "log"];
/// What a node writes into a log in place of what it left out.
const LEFT_OUT: &str = "selvedge: ";

/// A line as a node keeps it.
#[derive(Deserialize)]
struct Line {
    stream: String,
    line: String,
}

/// How long a line may take from an instance's hand to its node's file.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// Reads the logs of these nodes into a book, each line once.
#[derive(Debug, Default)]
pub struct LogReader {
    data: Vec<PathBuf>,
    book: BackendLedger,
    /// How far each log was read. A file is known by its first line, which says the time and so is
    /// no other's: its name changes when it is put away, and its inode may be another's later.
    offsets: HashMap<(Server, Vec<u8>), u64>,
}

impl LogReader {
    /// Of nodes with these data folders.
    pub fn new(data: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            data: data.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Of all nodes of a world.
    pub fn of(world: &World) -> Self {
        let nodes = world.nodes().iter();
        Self::new(nodes.map(|node| world.dir().join(&node.name)))
    }

    /// Adds what came since the last time.
    pub fn read(&mut self) -> Result<&BackendLedger> {
        for data in self.data.clone() {
            // The living first: one that goes meanwhile is found among the gone.
            let mut folders = living(&data)?;
            folders.extend(gone(&data)?);
            for (server, folder) in folders {
                self.read_folder(&server, &folder)?;
            }
        }
        Ok(&self.book)
    }

    /// Reads until every request that ended ok is in the book; when one does not come, what there
    /// is, for the checker to judge.
    pub fn read_all(&mut self, client: &ClientLedger) -> Result<&BackendLedger> {
        let whole = until("every request is in a log", ON_ITS_WAY, || {
            let book = self.read()?;
            let mut ok = client
                .entries()
                .filter(|(_, e)| matches!(e.kind(), Kind::Ok(_)));
            Ok(ok
                .all(|(id, _)| book.servings(id).next().is_some())
                .then_some(()))
        });
        match whole {
            Ok(()) => Ok(&self.book),
            Err(_) => self.read(),
        }
    }

    fn read_folder(&mut self, server: &Server, folder: &Path) -> Result<()> {
        for file in FILES {
            let path = folder.join(file);
            match File::open(&path) {
                Ok(file) => self.read_file(file, server),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
            .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn read_file(&mut self, file: File, server: &Server) -> io::Result<()> {
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        let book = &mut self.book;
        let place = book.server(server);
        let key = (server.clone(), line.clone());
        let offset = self.offsets.entry(key).or_default();
        reader.seek(SeekFrom::Start(*offset))?;
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                return Ok(()); // A line that is being written is not one yet.
            }
            *offset += read as u64;
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) if line.stream == "stdout" => book.read(place, &line.line),
                Ok(line) if line.line.starts_with(LEFT_OUT) => book.gap(place, &line.line),
                Ok(_) => {}
                Err(error) => book.gap(place, &error.to_string()),
            }
        }
    }
}

type Folder = (Server, PathBuf);

fn living(data: &Path) -> Result<Vec<Folder>> {
    let mut found = Vec::new();
    for (instance, folder) in children(&data.join("instances"))? {
        let Ok(record) = fs::read(folder.join("instance.json")) else {
            continue; // Being made, or going.
        };
        let record: Value = serde_json::from_slice(&record)?;
        let service = &record["revision"]["service"];
        let field = |name: &str| {
            let value = service[name].as_str().map(ToOwned::to_owned);
            value.with_context(|| format!("{instance} has no {name}"))
        };
        let server = Server {
            namespace: field("namespace")?,
            service: field("name")?,
            instance: instance.clone(),
        };
        found.push((server, folder));
    }
    Ok(found)
}

fn gone(data: &Path) -> Result<Vec<Folder>> {
    let mut found = Vec::new();
    for (namespace, folder) in children(&data.join("log"))? {
        for (service, folder) in children(&folder)? {
            for (instance, folder) in children(&folder)? {
                let server = Server {
                    namespace: namespace.clone(),
                    service: service.clone(),
                    instance,
                };
                found.push((server, folder));
            }
        }
    }
    Ok(found)
}

/// The folders in a folder; none when it is not there.
fn children(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    let named = folders.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::server::served::LoadId;

    struct Data(tempfile::TempDir, u64);

    impl Data {
        /// A node's folder with one instance.
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let folder = data.path().join("instances/web-1");
            fs::create_dir_all(&folder).unwrap();
            let record = r#"{"revision":{"service":{"namespace":"default","name":"web"}}}"#;
            fs::write(folder.join("instance.json"), record).unwrap();
            Self(data, 0)
        }

        fn log(&self) -> PathBuf {
            self.0.path().join("instances/web-1/log")
        }

        fn write(&mut self, stream: &str, text: &str) {
            self.1 += 1;
            let line = format!(
                r#"{{"time":{},"stream":"{stream}","line":"{text}"}}"#,
                self.1
            );
            let file = File::options().append(true).create(true).open(self.log());
            writeln!(file.unwrap(), "{line}").unwrap();
        }
    }

    fn served(book: &BackendLedger) -> Vec<(u32, usize)> {
        let ids: Vec<LoadId> = book.served(1).collect();
        let times = |id: &LoadId| (id.sequence, book.servings(*id).count());
        ids.iter().map(times).collect()
    }

    #[test]
    fn each_line_is_read_once_across_two_files_and_the_end_of_the_instance() {
        let mut data = Data::new();
        let mut reader = LogReader::new([data.0.path().to_owned()]);
        data.write("stdout", "box begins");
        data.write("stdout", "ids G1.0 P1.1");
        reader.read().unwrap();
        data.write("stdout", "ids G1.2");
        fs::rename(data.log(), data.log().with_file_name("log.1")).unwrap();
        data.write("stdout", "ids G1.3");
        reader.read().unwrap();
        data.write("stdout", "ids G1.4");
        let shelf = data.0.path().join("log/default/web/web-1");
        fs::create_dir_all(shelf.parent().unwrap()).unwrap();
        fs::rename(data.log().parent().unwrap(), &shelf).unwrap();
        let book = reader.read().unwrap();
        let once: Vec<_> = (0..5).map(|sequence| (sequence, 1)).collect();
        assert_eq!(served(book), once);
        assert_eq!(book.servers.len(), 1);
        assert_eq!(book.gaps, [""; 0]);
    }

    #[test]
    fn half_a_line_waits_and_a_gap_is_told() {
        let mut data = Data::new();
        let mut reader = LogReader::new([data.0.path().to_owned()]);
        data.write("stderr", "selvedge: 7 lines dropped: more than 1 MiB/s");
        let mut file = File::options().append(true).open(data.log()).unwrap();
        write!(file, r#"{{"time":9,"stream":"stdout","#).unwrap();
        assert_eq!(served(reader.read().unwrap()), []);
        writeln!(file, r#""line":"ids G1.0"}}"#).unwrap();
        let book = reader.read().unwrap();
        assert_eq!(served(book), [(0, 1)]);
        assert_eq!(book.gaps.len(), 1, "{:?}", book.gaps);
        assert!(book.gaps[0].contains("7 lines"), "{:?}", book.gaps);
    }
}
