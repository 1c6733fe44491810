//! The rooms of the product that start containers, driven without the daemon around them: the
//! program `rooms` on a host of its own, spoken to in lines (`src/bin/rooms.rs` says which). Owns
//! that process; what is measured with it is the benchmarks'.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::group::Group;
use super::{Plan, yard};
use crate::world::World;

/// The containers' network, on a host where nothing else is.
const SUBNET: &str = "10.77.0.0/16";

pub struct Rooms {
    child: Child,
    words: ChildStdin,
    said: BufReader<ChildStdout>,
    /// The host it runs on.
    pub netns: String,
    pub group: Group,
    pub folder: PathBuf,
}

impl Rooms {
    /// Starts it on a host of its own in `world`, with the test image, below `group`.
    pub fn start(world: &World, plan: &Plan, group: Group) -> Result<Self> {
        let program = plan.programs.join("rooms");
        let hint = "build it: cargo build --release -p chaos-tests --bin rooms";
        ensure!(program.exists(), "no {}; {hint}", program.display());
        let netns = yard::host(world, "rooms")?;
        // "selvedge" is in the folder's name: what is left running is found by it.
        let folder = world.dir().join("rooms");
        fs::create_dir_all(&folder)?;
        let archive = world.archive("oci-archive", "box")?;
        let mut child = Command::new("nsenter")
            .args([&format!("--net=/run/netns/{netns}"), "--"])
            .arg(program)
            .arg(&folder)
            .args([&group.path, SUBNET])
            .arg(plan.programs.join("selvedged"))
            .arg(archive)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("log"))?)
            .spawn()
            .context("running rooms")?;
        group.add(child.id())?;
        let (words, said) = (child.stdin.take(), child.stdout.take());
        let (words, said) = words.zip(said).context("no pipes")?;
        let mut rooms = Self {
            child,
            words,
            said: BufReader::new(said),
            netns,
            group,
            folder,
        };
        rooms.hear("ready")?;
        Ok(rooms)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        Ok(self.words.write_all(format!("{line}\n").as_bytes())?)
    }

    /// The rest of the next line, which must begin with `word`.
    pub fn hear(&mut self, word: &str) -> Result<Vec<String>> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        if words.next().as_deref() == Some(word) {
            return Ok(words.collect());
        }
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        bail!(
            "rooms was to say `{word}` and said `{}`\n{log}",
            line.trim()
        );
    }

    pub fn ask(&mut self, line: &str, word: &str) -> Result<Vec<String>> {
        self.say(line)?;
        self.hear(word)
    }

    /// Keeps so many networks ready, and waits until they are and those given back are gone.
    pub fn keep_networks(&mut self, count: usize) -> Result<()> {
        self.ask(&format!("networks {count}"), "networks").map(drop)
    }

    /// Everything but the program running; where it will answer.
    pub fn create(&mut self, id: &str) -> Result<Ipv4Addr> {
        let words = self.ask(&format!("create {id}"), "created")?;
        Ok(words.get(1).context("no address")?.parse()?)
    }

    /// What a line about many took.
    pub fn many(&mut self, what: &str, count: usize, prefix: &str) -> Result<Duration> {
        let words = self.ask(&format!("{what} {count} {prefix}"), what)?;
        let micros = words.get(1).context("no time")?.parse()?;
        Ok(Duration::from_micros(micros))
    }

    pub fn clear(&mut self) -> Result<()> {
        self.ask("clear", "cleared").map(drop)
    }

    /// The processes of an instance: its shim, its first.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>> {
        let record = self.folder.join("scratch").join(id).join("shim.json");
        pids(&record).with_context(|| format!("{}", record.display()))
    }
}

fn pids(record: &Path) -> Result<Vec<i32>> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record)?)?;
    let pid = |name: &str| record[name]["pid"].as_i64();
    let both = pid("shim").zip(pid("container")).context("no pids")?;
    Ok(vec![both.0.try_into()?, both.1.try_into()?])
}

impl Drop for Rooms {
    fn drop(&mut self) {
        // The end of its input would have it tidy up; the world does that in any case.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
